--[[
refund: the money of a confirmed order goes back. The merchant says whether the units return to the
stock (else the total falls by them) and whether the buyer may buy them again. Repeating the same
refund id changes nothing. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] order id  [3] refund id  [4] units return: 1 or 0  [5] limit is given back: 1 or 0
Returns  {status, sale time ms, record}
Events   refunded

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, UNKNOWN_ORDER, ALREADY (this very refund),
CONFLICT (this refund id with other choices), REFUNDED (by another refund id), NOT_CONFIRMED, DONE.
]]
--@include "lib/status"
--@include "lib/units"
--@include "lib/sale"
--@include "lib/record"
--@include "lib/give_back"
local caller, id, refund, return_units, return_limit =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1', ARGV[5] == '1'
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0, '' } end
read_clock(sale)
local order, text = find_order(id, '')
if not order then return { STATUS.UNKNOWN_ORDER, sale.now_ms, '' } end
local wish = refund .. ',' .. (return_units and 1 or 0) .. ',' .. (return_limit and 1 or 0)
if order.state == 'f' then
  local status = STATUS.REFUNDED
  if order.refund == wish then
    status = STATUS.ALREADY
  elseif string.match(order.refund, '^[^,]*') == refund then
    status = STATUS.CONFLICT
  end
  return { status, sale.now_ms, text }
end
if order.state ~= 'c' then return { STATUS.NOT_CONFIRMED, sale.now_ms, text } end
write_even_when_full()
order.state = 'f'
order.refund = wish
local record = write_order(sale, id, order, 'refunded', wish)
give_back_stock(order, 'confirmed', return_units and 'available' or 'gone')
if return_limit then give_back_limit(order, 0) end
write_sale(sale)
return { STATUS.DONE, sale.now_ms, record }
