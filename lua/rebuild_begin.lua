--[[
rebuild_begin: takes a fenced sale in hand, so that only this rebuild can put one in its place. It
takes it from an earlier one, which may have been cut off. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] token of this rebuild
Returns  {status}
Events   none

Answers: UPGRADE_NEEDED, ALREADY (the sale is not fenced), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, token = ARGV[1], ARGV[2]
if read_caller(caller) ~= FORMAT then return { STATUS.UPGRADE_NEEDED } end
if redis.call('HGET', KEYS[1], 'state') ~= 'fenced' then return { STATUS.ALREADY } end
write_even_when_full()
redis.call('HSET', KEYS[1], 'rebuilt_by', token)
return { STATUS.DONE }
