--[[
release: a held or paying order is given up: its units go back to the stock, and the buyer may buy
them again. Repeating it changes nothing. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] order id  [3] buyer, or empty for the backend
Returns  {status, sale time ms, record}
Events   released, sale settled

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, UNKNOWN_ORDER, ALREADY (released), CONFIRMED,
REFUNDED, EXPIRED, DONE.
]]
--@include "lib/status"
--@include "lib/units"
--@include "lib/sale"
--@include "lib/record"
--@include "lib/give_back"
local caller, id, buyer = ARGV[1], ARGV[2], ARGV[3]
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0, '' } end
read_clock(sale)
local order, text = find_order(id, buyer)
if not order then return { STATUS.UNKNOWN_ORDER, sale.now_ms, '' } end
if order.state == 'r' then return { STATUS.ALREADY, sale.now_ms, text } end
if order.state ~= 'h' and order.state ~= 'p' then
  return { SETTLED_STATUS[order.state], sale.now_ms, text }
end
write_even_when_full()
order.state = 'r'
local record = write_order(sale, id, order, 'released', '')
give_back_stock(order, 'held', 'available')
give_back_limit(order, 0)
settle_if_done(sale)
write_sale(sale)
return { STATUS.DONE, sale.now_ms, record }
