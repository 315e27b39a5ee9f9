--[[
pause: stops new orders at once. Buyers who hold units can still pay, and deadlines keep running.
Repeating it changes nothing, not even the reason. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] reason
Returns  {status, sale time ms}
Events   sale paused

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, ALREADY (paused), NOT_OPEN (not opened yet),
CLOSED, DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, reason = ARGV[1], ARGV[2]
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0 } end
read_clock(sale)
if sale.state == 'paused' then return { STATUS.ALREADY, sale.now_ms } end
if sale.state == 'created' then return { STATUS.NOT_OPEN, sale.now_ms } end
if sale.state ~= 'open' then return { STATUS.CLOSED, sale.now_ms } end
write_even_when_full()
emit(sale, 'sale', 'paused|' .. reason)
redis.call('HSET', KEYS[1], 'state', 'paused', 'reason', reason)
write_sale(sale)
return { STATUS.DONE, sale.now_ms }
