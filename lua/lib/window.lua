-- Whether a sale takes new orders at all; what it says to an order it knows is another matter.

-- Returns what every new order is refused with, or nil while the sale sells. After read_clock.
local function closed_status(sale)
  if sale.state == 'created' then return STATUS.NOT_OPEN end
  if sale.state ~= 'open' and sale.state ~= 'paused' then return STATUS.ENDED end
  if sale.jumped or sale.state == 'paused' then return STATUS.PAUSED end
  if sale.now_ms < sale.opens_ms then return STATUS.NOT_OPEN end
  if sale.now_ms >= sale.ends_ms then return STATUS.ENDED end
  return nil
end

-- A process that was told by lease.lua that a SKU is sold out says so from memory for a while. Until
-- then nobody may buy it, even if a unit has come back: whoever did would be told by that process
-- that it is sold out when repeating the order blindly.
local LEASE_MAX_MS = 1000

-- Whether such a promise is out. until_ms: the SKU's 'lease' in the stock hash, or false. One that is
-- further away than any lease was given by a clock that has been set back since, and is over.
local function is_leased(until_ms, sale)
  if not until_ms then return false end
  local rest_ms = tonumber(until_ms) - sale.raw_ms
  return rest_ms > 0 and rest_ms <= LEASE_MAX_MS
end
