--[[
note: writes a field of the sale that means nothing, after a batch whose caller waits for the replicas:
WAIT tells how many have what its own connection wrote, and a batch that found all of its orders made
before has written nothing. Changes nothing else. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller
Returns  {status}
Events   none

Answers: UPGRADE_NEEDED, UNKNOWN_SALE, DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller = ARGV[1]
if read_caller(caller) ~= FORMAT then return { STATUS.UPGRADE_NEEDED } end
if redis.call('HLEN', KEYS[1]) == 0 then return { STATUS.UNKNOWN_SALE } end
write_even_when_full()
redis.call('HSET', KEYS[1], 'noted', 1)
return { STATUS.DONE }
