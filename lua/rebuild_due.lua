--[[
rebuild_due: says again of an order of a sale that is being rebuilt which payments bought nothing,
whatever state the order has now: each had its outcome, so none of them may buy a unit. Its next
version is above the least one that is given. A payment that the order has already is left alone, and
so is the 17th.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] token of this rebuild  [3] order id  [4] the version above which it goes on
         [5] payment ids in msgpack
Returns  {status}
Events   refund_due

Answers: UPGRADE_NEEDED, CONFLICT (another rebuild has begun since), UNKNOWN_ORDER, DONE.
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/record"
local caller, token, id, least = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local payments = cmsgpack.unpack(ARGV[5])
if read_caller(caller) ~= FORMAT then return { STATUS.UPGRADE_NEEDED } end
if redis.call('HGET', KEYS[1], 'token') ~= token then return { STATUS.CONFLICT } end
local sale = read_sale(caller, true)
read_clock(sale)
local order = find_order(id, '')
if not order then return { STATUS.UNKNOWN_ORDER } end
if least > order.version then
  order.version = least
  redis.call('HSET', KEYS[4], id, write_record(order))
end
for _, payment in ipairs(payments) do
  if #order.payments < PAYMENTS_MAX and not has_payment(order, payment) then
    order.payments[#order.payments + 1] = payment
    write_order(sale, id, order, 'refund_due', payment)
  end
end
write_sale(sale)
return { STATUS.DONE }
