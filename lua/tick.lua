--[[
tick: writes down what a group's one active consumer has dealt with: entries to acknowledge or to
remember as half done, dead letters, and wishes for letters that were taken up or answered. All of it
or, when the lease is no longer this consumer's, nothing. Repeating it changes nothing more.
Works at maxmemory: what was handled must be ticked off, or it would be handled again and again.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
         [8] lease  [9] done  [10] dead  [11] again
ARGV     [1] caller  [2] group  [3] token of the consumer  [4] lease ms, 0 gives the lease back
         [5] the notes in msgpack: {ids of entries that are complete, {entry id, bits, …} of those
         that are not, fields of letters that are gone, {field, letter, …}, answered wishes, new ones}
Returns  {status, the wishes as they stand now}; a wish that was taken up ends with a newline
Events   none

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED (another consumer has the lease, or it ran out), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, group, token, lease_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local complete, halves, gone, letters, heard, wishes = unpack(cmsgpack.unpack(ARGV[5]))
check_keys()
redis.call('HLEN', KEYS[9])
redis.call('HLEN', KEYS[10])
local sale, refusal = read_sale(caller, true)
if not sale then return { refusal, redis.call('SMEMBERS', KEYS[11]) } end
local standing = redis.call('SMEMBERS', KEYS[11])
if redis.call('GET', KEYS[8]) ~= token then return { STATUS.FENCED, standing } end
write_even_when_full()
for i = 1, #gone do redis.call('HDEL', KEYS[10], gone[i]) end
-- The letters before the acknowledgements that need them. It is one step all the same, but whoever
-- reads the log of a server that was cut off in the middle must not find an event in neither place.
for i = 1, #letters, 2 do redis.call('HSET', KEYS[10], letters[i], letters[i + 1]) end
for i = 1, #complete do
  redis.call('XACK', KEYS[7], group, complete[i])
  redis.call('HDEL', KEYS[9], complete[i])
end
for i = 1, #halves, 2 do redis.call('HSET', KEYS[9], halves[i], halves[i + 1]) end
for i = 1, #heard do redis.call('SREM', KEYS[11], heard[i] .. '\n') end
for i = 1, #wishes do
  redis.call('SREM', KEYS[11], wishes[i])
  redis.call('SADD', KEYS[11], wishes[i] .. '\n')
end
if lease_ms > 0 then redis.call('PEXPIRE', KEYS[8], lease_ms) else redis.call('DEL', KEYS[8]) end
return { STATUS.DONE, redis.call('SMEMBERS', KEYS[11]) }
