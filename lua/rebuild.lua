--[[
rebuild: puts a sale that was rebuilt beside the fenced one in its place, in one step: whoever asks
finds the one or the other. The consumer groups that the old stream had, and the ledger's own, begin
with the new stream's first event. A closed sale in which nothing is held any more is settled. What
stood there before is gone. Repeating it changes nothing. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events, then the same
         of the sale that was rebuilt: [8] sale  [9] stock  [10] buyers  [11] orders  [12] holds
         [13] paying  [14] events
ARGV     [1] caller  [2] token of this rebuild  [3] consumer group of the ledger
Returns  {status, seq, names of the consumer groups}
Events   sale settled

Answers: UPGRADE_NEEDED, CONFLICT (another rebuild has begun since), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, token, ledger = ARGV[1], ARGV[2], ARGV[3]
if read_caller(caller) ~= FORMAT then return { STATUS.UPGRADE_NEEDED, 0, {} } end
local before = redis.call('HMGET', KEYS[1], 'state', 'rebuilt_by', 'seq')
if before[2] ~= token then return { STATUS.CONFLICT, 0, {} } end
if before[1] ~= 'fenced' then return { STATUS.DONE, tonumber(before[3]), {} } end
local built = redis.call('HMGET', KEYS[8], 'token', 'seq')
if built[1] ~= token or not built[2] then return { STATUS.CONFLICT, 0, {} } end

local groups = { ledger }
if redis.call('EXISTS', KEYS[7]) == 1 then
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[7])) do
    -- Field, value, field, value; the first is the name.
    if group[2] ~= ledger then groups[#groups + 1] = group[2] end
  end
end

write_even_when_full()
-- RENAME over a key that is there would free it at once, and hold everybody up.
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
redis.call('RENAME', KEYS[8], KEYS[1])
redis.call('RENAME', KEYS[9], KEYS[2])
redis.call('RENAME', KEYS[14], KEYS[7])
if redis.call('EXISTS', KEYS[10]) == 1 then redis.call('RENAME', KEYS[10], KEYS[3]) end
if redis.call('EXISTS', KEYS[11]) == 1 then redis.call('RENAME', KEYS[11], KEYS[4]) end
if redis.call('EXISTS', KEYS[12]) == 1 then redis.call('RENAME', KEYS[12], KEYS[5]) end
if redis.call('EXISTS', KEYS[13]) == 1 then redis.call('RENAME', KEYS[13], KEYS[6]) end
redis.call('HDEL', KEYS[1], 'token', 'part')
redis.call('HSET', KEYS[1], 'rebuilt_by', token)
for _, group in ipairs(groups) do redis.call('XGROUP', 'CREATE', KEYS[7], group, '0') end

local sale = read_sale(caller, true)
read_clock(sale)
settle_if_done(sale)
write_sale(sale)
return { STATUS.DONE, sale.seq, groups }
