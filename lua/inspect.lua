--[[
inspect: one consistent snapshot of a sale: its header, its stock and the size of everything else,
all as of one seq. A fenced sale is shown too; one that was lost has no stock. Writes nothing.
Engine.snapshot reads it.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller
Returns  {status, sale time ms, header as field, value …, stock as field, value …, number of orders,
         of buyers, of entries in the holds queue, in the paying queue, in the event stream}
Events   none

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller = ARGV[1]
check_keys()
local sale, refusal = read_sale(caller, true)
if not sale then return { refusal, 0 } end
read_clock(sale)
return { STATUS.DONE, sale.now_ms, redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]),
  redis.call('HLEN', KEYS[4]), redis.call('HLEN', KEYS[3]), redis.call('LLEN', KEYS[5]),
  redis.call('LLEN', KEYS[6]), redis.call('XLEN', KEYS[7]) }
