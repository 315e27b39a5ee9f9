--[[
rebuild_admit: takes orders that the ledger does not know into a sale that is being rebuilt, as if
they were made now: held, as long as stock and limits last, else expired. One that had been released
or had expired comes back as that; one whose money had gone back already, and for which nothing is
left, as released. What was paid for them is said again by confirm, or by rebuild_due. Each begins
above the version that it had, so that nobody takes it for a version he has had. A known id is left
alone.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] token of this rebuild
         [3] the orders in msgpack, at most 1,000: {ids, records, attrs}
Returns  {status, the state that each has now (lib/record)}
Events   held, expired, released

Answers: UPGRADE_NEEDED, CONFLICT (another rebuild has begun since), DONE.
]]
--@include "lib/status"
--@include "lib/units"
--@include "lib/limits"
--@include "lib/sale"
--@include "lib/record"
local caller, token = ARGV[1], ARGV[2]
local ids, records, attrs = unpack(cmsgpack.unpack(ARGV[3]))
if read_caller(caller) ~= FORMAT then return { STATUS.UPGRADE_NEEDED, {} } end
if redis.call('HGET', KEYS[1], 'token') ~= token then return { STATUS.CONFLICT, {} } end
local sale = read_sale(caller, true)
read_clock(sale)
-- A version is one digit, and leaves room for 16 payments and all else that may happen. Whoever had
-- a higher one had payments, which are said again.
local VERSION_MAX = 15

-- By reserve's rules, whether these units can be held.
local function can_hold(lines, units, purse, purse_units, lapsed)
  if sale.state ~= 'paused' then return false end
  if sale.max_lapsed > 0 and lapsed >= sale.max_lapsed then return false end
  local sku_limits = {}
  for i = 1, #lines, 2 do
    local s = redis.call('HMGET', KEYS[2], lines[i] .. ':available', lines[i] .. ':limit')
    if tonumber(s[1]) < lines[i + 1] then return false end
    sku_limits[lines[i]] = tonumber(s[2])
  end
  return not limit_refusal(lines, units, purse, purse_units, sku_limits, sale)
end

local function admit(id, order, text)
  local lines, units = read_units(order.cart)
  local purse, purse_units, lapsed = read_purse(redis.call('HGET', KEYS[3], order.buyer))
  local before = order.state
  order.version = math.min(order.version + 1, VERSION_MAX)
  order.payments, order.refund = {}, ''
  if before == 'r' or before == 'x' then
    order.state = before
  elseif can_hold(lines, units, purse, purse_units, lapsed) then
    order.state = 'h'
  else
    order.state = before == 'f' and 'r' or 'x'
  end
  if order.state == 'h' then order.deadline = sale.now_ms + sale.hold_ms - sale.origin_ms end
  local record = write_record(order)
  if order.state == 'h' then
    emit(sale, id, 'held||' .. record .. '|' .. text)
    for i = 1, #lines, 2 do
      redis.call('HINCRBY', KEYS[2], lines[i] .. ':available', -lines[i + 1])
      redis.call('HINCRBY', KEYS[2], lines[i] .. ':held', lines[i + 1])
      purse[lines[i]] = (purse[lines[i]] or 0) + lines[i + 1]
    end
    redis.call('RPUSH', KEYS[5], id)
  elseif order.state == 'x' then
    emit(sale, id, 'expired||' .. record)
    lapsed = lapsed + 1
  else
    emit(sale, id, 'released||' .. record)
  end
  redis.call('HSET', KEYS[4], id, record)
  redis.call('HSET', KEYS[3], order.buyer, write_purse(purse, lapsed))
  return order.state
end

local states = {}
for i, id in ipairs(ids) do
  local known = redis.call('HGET', KEYS[4], id)
  states[i] = known and string.sub(known, 1, 1) or admit(id, read_record(records[i]), attrs[i])
end
write_sale(sale)
return { STATUS.DONE, states }
