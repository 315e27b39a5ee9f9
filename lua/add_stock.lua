--[[
add_stock: adds units to a SKU, or takes some away, while the sale runs. What is held or sold stays:
taking away more than is available is refused. Repeating an operation key changes nothing.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] definition id  [3] SKU index  [4] units, negative to take away  [5] operation key
Returns  {status, sale time ms, available, total}
Events   sale stock

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, STALE_DEFINITION, ALREADY, CONFLICT (this key
with another SKU or number), UNKNOWN_SKU, CLOSED, BELOW_COMMITTED, TOO_MANY_UNITS, DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, definition_id, index, units, key =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local UNITS_MAX = 1000000000
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0, 0, 0 } end
if definition_id ~= sale.definition_id then return { STATUS.STALE_DEFINITION, 0, 0, 0 } end
read_clock(sale)
local stock = redis.call('HMGET', KEYS[2], index .. ':available', index .. ':total')
local available, total = tonumber(stock[1]) or 0, tonumber(stock[2]) or 0
local wish = index .. ':' .. ARGV[4]
local done = redis.call('HGET', KEYS[1], 'stock:' .. key)
if done then
  return { done == wish and STATUS.ALREADY or STATUS.CONFLICT, sale.now_ms, available, total }
end
if not stock[1] then return { STATUS.UNKNOWN_SKU, sale.now_ms, 0, 0 } end
if sale.state == 'closed' or sale.state == 'settled' then
  return { STATUS.CLOSED, sale.now_ms, available, total }
end
if available + units < 0 then return { STATUS.BELOW_COMMITTED, sale.now_ms, available, total } end
if total + units > UNITS_MAX then return { STATUS.TOO_MANY_UNITS, sale.now_ms, available, total } end
available, total = available + units, total + units
emit(sale, 'sale', 'stock|' .. key .. '|' .. index .. '|' .. ARGV[4] .. '|' .. string.format('%d', total))
redis.call('HSET', KEYS[2], index .. ':available', available, index .. ':total', total)
redis.call('HSET', KEYS[1], 'stock:' .. key, wish)
write_sale(sale)
return { STATUS.DONE, sale.now_ms, available, total }
