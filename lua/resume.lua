--[[
resume: lets a paused sale sell again. After a jump of the clock it also accepts the server's time
as it is now, so what is overdue by it expires with the next sweep; a closed sale stays closed.
Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller
Returns  {status, sale time ms}
Events   sale resumed

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, ALREADY (open), NOT_OPEN (not opened yet),
CLOSED, DONE (also for a closed sale whose clock it accepts).
]]
--@include "lib/status"
--@include "lib/sale"
local caller = ARGV[1]
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0 } end
read_clock(sale)
if sale.state == 'open' then return { STATUS.ALREADY, sale.now_ms } end
if sale.state == 'created' then return { STATUS.NOT_OPEN, sale.now_ms } end
if sale.state == 'closed' and sale.jumped then
  write_even_when_full()
  sale.now_ms = sale.wall_ms
  write_sale(sale)
  return { STATUS.DONE, sale.now_ms }
end
if sale.state ~= 'paused' then return { STATUS.CLOSED, sale.now_ms } end
write_even_when_full()
sale.now_ms = sale.wall_ms
emit(sale, 'sale', 'resumed|')
redis.call('HSET', KEYS[1], 'state', 'open', 'reason', '')
write_sale(sale)
return { STATUS.DONE, sale.now_ms }
