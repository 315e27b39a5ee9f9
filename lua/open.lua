--[[
open: lets a created sale sell, from its opens time on. Repeating it changes nothing; a paused sale
stays paused.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller
Returns  {status, sale time ms}
Events   sale opened

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, ALREADY (open), PAUSED (resume it), CLOSED, DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller = ARGV[1]
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0 } end
read_clock(sale)
if sale.state == 'open' then return { STATUS.ALREADY, sale.now_ms } end
if sale.state == 'paused' then return { STATUS.PAUSED, sale.now_ms } end
if sale.state ~= 'created' then return { STATUS.CLOSED, sale.now_ms } end
emit(sale, 'sale', 'opened|')
redis.call('HSET', KEYS[1], 'state', 'open')
write_sale(sale)
return { STATUS.DONE, sale.now_ms }
