--[[
close: ends a sale for good. Held orders can still be paid or lapse; when none is left the sale is
settled and says what stayed unsold. Repeating it changes nothing. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller
Returns  {status, sale time ms}
Events   sale closed, sale settled

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, ALREADY (closed or settled), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller = ARGV[1]
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0 } end
read_clock(sale)
if sale.state == 'closed' or sale.state == 'settled' then
  return { STATUS.ALREADY, sale.now_ms }
end
write_even_when_full()
sale.state = 'closed'
emit(sale, 'sale', 'closed|')
redis.call('HSET', KEYS[1], 'state', 'closed', 'reason', '')
settle_if_done(sale)
write_sale(sale)
return { STATUS.DONE, sale.now_ms }
