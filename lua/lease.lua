--[[
lease: what every new order would be refused with at this moment, for a process that will say so from
memory for lease_ms. A SKU that is answered here as sold out is not sold until the lease is over.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] definition id  [3] lease ms, 1 to 990
Returns  {status, ms until the sale opens (0: it has, or who knows when), number of buyers who have
         had an order, what tells this sale from one lost before under the same id, index, index …
         of the SKUs that are sold out}
Events   none

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, STALE_DEFINITION, PAUSED, NOT_OPEN, ENDED, DONE
(it sells).
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/window"
local caller, definition_id, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0, 0, '' } end
if definition_id ~= sale.definition_id then return { STATUS.STALE_DEFINITION, 0, 0, '' } end
read_clock(sale)
local closed = closed_status(sale)
local made = redis.call('HGET', KEYS[1], 'made') or ''
local reply = { closed or STATUS.DONE, 0, redis.call('HLEN', KEYS[3]), made }
if closed then
  -- One less, because now_ms is cut to the whole millisecond before.
  if closed == STATUS.NOT_OPEN then reply[2] = math.max(0, sale.opens_ms - sale.now_ms - 1) end
  return reply
end
-- Longer than the process counts, because TIME is cut to whole milliseconds and clocks drift.
local until_ms = string.format('%d', sale.raw_ms + lease_ms + 10)
local fields, stock, leases = redis.call('HGETALL', KEYS[2]), {}, {}
for i = 1, #fields, 2 do stock[fields[i]] = fields[i + 1] end
local count = 0
while stock[count .. ':available'] do
  local index, lease = tostring(count), stock[count .. ':lease']
  if tonumber(stock[index .. ':available']) <= 0 then
    reply[#reply + 1] = index
    -- Another process may have been promised more.
    if not is_leased(lease, sale) or tonumber(lease) < tonumber(until_ms) then
      leases[#leases + 1], leases[#leases + 2] = index .. ':lease', until_ms
    end
  end
  count = count + 1
end
if #leases > 0 then redis.call('HSET', KEYS[2], unpack(leases)) end
return reply
