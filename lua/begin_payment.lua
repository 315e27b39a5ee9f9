--[[
begin_payment: the buyer is on the way to the cashier: a held order becomes paying, with a new
deadline. Repeating it changes nothing. An overdue hold is refused even before the sweep took it.
Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] order id  [3] buyer, or empty for the backend
Returns  {status, sale time ms, record}
Events   paying

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, UNKNOWN_ORDER, ALREADY (paying), CONFIRMED,
REFUNDED, RELEASED, EXPIRED, DONE.
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/record"
local caller, id, buyer = ARGV[1], ARGV[2], ARGV[3]
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0, '' } end
read_clock(sale)
local order, text = find_order(id, buyer)
if not order then return { STATUS.UNKNOWN_ORDER, sale.now_ms, '' } end
if order.state == 'p' then return { STATUS.ALREADY, sale.now_ms, text } end
if order.state ~= 'h' then return { SETTLED_STATUS[order.state], sale.now_ms, text } end
if due_ms(sale, order) <= sale.now_ms then return { STATUS.EXPIRED, sale.now_ms, text } end
write_even_when_full()
order.state = 'p'
order.deadline = sale.now_ms + sale.pay_ms - sale.origin_ms
local record = write_order(sale, id, order, 'paying', '')
redis.call('RPUSH', KEYS[6], id)
write_sale(sale)
return { STATUS.DONE, sale.now_ms, record }
