--[[
confirm: money has arrived for an order. A held or paying order becomes confirmed, whatever its
deadline says, as long as the sweep has not taken it. Money that comes later, twice, or for an order
given up buys a unit that is still there, or leaves one refund_due event. Beyond 16 payments of one
order the answer alone says that the money is due back.
Repeating a payment writes nothing and says what has become of it. In a closed sale nothing is sold
any more: late money is always due back.
Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] order id  [3] payment id
Returns  {status, sale time ms, record}
Events   confirmed, refund_due, sale settled

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, UNKNOWN_ORDER; ALREADY (this payment confirmed
the order), REFUNDED (this payment confirmed it, and it was refunded since), LATE, DUPLICATE_PAYMENT,
TOO_MANY_PAYMENTS, DONE, CONFIRMED_LATE (it had expired, a unit was left and the limits allowed it).
]]
--@include "lib/status"
--@include "lib/units"
--@include "lib/limits"
--@include "lib/sale"
--@include "lib/record"
local caller, id, payment = ARGV[1], ARGV[2], ARGV[3]
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0, '' } end
read_clock(sale)
local order, text = find_order(id, '')
if not order then return { STATUS.UNKNOWN_ORDER, sale.now_ms, '' } end
local paid = order.state == 'c' or order.state == 'f'

if has_payment(order, payment) then
  local status = STATUS.DUPLICATE_PAYMENT
  if not paid then
    status = STATUS.LATE
  elseif order.payments[1] == payment then
    status = order.state == 'c' and STATUS.ALREADY or STATUS.REFUNDED
  end
  return { status, sale.now_ms, text }
end
if #order.payments >= PAYMENTS_MAX then return { STATUS.TOO_MANY_PAYMENTS, sale.now_ms, text } end

local lines, units = read_units(order.cart)

-- Whether an expired order's units can be sold to it again.
local function can_sell_late(purse, purse_units)
  if sale.state ~= 'open' and sale.state ~= 'paused' then return false end
  local sku_limits = {}
  for i = 1, #lines, 2 do
    local s = redis.call('HMGET', KEYS[2], lines[i] .. ':available', lines[i] .. ':limit')
    if tonumber(s[1]) < lines[i + 1] then return false end
    sku_limits[lines[i]] = tonumber(s[2])
  end
  return not limit_refusal(lines, units, purse, purse_units, sku_limits, sale)
end

local function move_stock(from)
  for i = 1, #lines, 2 do
    redis.call('HINCRBY', KEYS[2], lines[i] .. ':' .. from, -lines[i + 1])
    redis.call('HINCRBY', KEYS[2], lines[i] .. ':confirmed', lines[i + 1])
  end
end

local purse, purse_units, lapsed = read_purse(redis.call('HGET', KEYS[3], order.buyer))
local status, from = STATUS.DONE, 'held'
if order.state == 'x' and can_sell_late(purse, purse_units) then
  status, from = STATUS.CONFIRMED_LATE, 'available'
elseif order.state ~= 'h' and order.state ~= 'p' then
  status, from = paid and STATUS.DUPLICATE_PAYMENT or STATUS.LATE, nil
end

write_even_when_full()
local record
if from then
  order.state = 'c'
  table.insert(order.payments, 1, payment)
  record = write_order(sale, id, order, 'confirmed', payment)
  move_stock(from)
else
  order.payments[#order.payments + 1] = payment
  record = write_order(sale, id, order, 'refund_due', payment)
end
if status == STATUS.CONFIRMED_LATE then
  for i = 1, #lines, 2 do
    purse[lines[i]] = (purse[lines[i]] or 0) + lines[i + 1]
  end
  redis.call('HSET', KEYS[3], order.buyer, write_purse(purse, math.max(0, lapsed - 1)))
end
settle_if_done(sale)
write_sale(sale)
return { status, sale.now_ms, record }
