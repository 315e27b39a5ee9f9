--[[
take: gives a group's one active consumer the next entries of the stream, while it has the lease. One
that was stopped for longer than that must not read on: all go by one consumer's name, so whatever it
read would be kept from the one that came after it.
Works at maxmemory: what was sold must be handed on.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
         [8] lease  [9] done  [10] dead  [11] again
ARGV     [1] caller  [2] group  [3] token of the consumer  [4] consumer's name in the group
         [5] entries at most  [6] '>', or the id behind which to read what was taken before
Returns  {status, the entries, as XREADGROUP gives them, id of the stream's last entry if there may be
         no more of them}
Events   none

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED (another consumer has the lease, or it ran out), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, group, token = ARGV[1], ARGV[2], ARGV[3]
local consumer, count, cursor = ARGV[4], ARGV[5], ARGV[6]
check_keys()
local sale, refusal = read_sale(caller, true)
if not sale then return { refusal, {}, '' } end
if redis.call('GET', KEYS[8]) ~= token then return { STATUS.FENCED, {}, '' } end
write_even_when_full()
local found = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', KEYS[7], cursor)
local entries, last_id = found and found[1] and found[1][2] or {}, ''
if #entries == tonumber(count) then return { STATUS.DONE, entries, '' } end
local facts = redis.call('XINFO', 'STREAM', KEYS[7])
for i = 1, #facts, 2 do
  if facts[i] == 'last-generated-id' then last_id = facts[i + 1] end
end
return { STATUS.DONE, entries, last_id }
