--[[
rebuild_load: puts one part of a lost sale under the keys where it is being rebuilt, beside the sale
itself. Parts come one after the other; the first one clears what an earlier attempt has left there,
and repeating the last one changes nothing.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] token of this rebuild  [3] number of the part, the first is 0
         [4] the part in msgpack: {orders as id, record …, buyers as buyer, purse …, ids for the
         holds queue, ids for the paying queue}, at most 1,000 of each
Returns  {status}
Events   none

Answers: UPGRADE_NEEDED, CONFLICT (another rebuild has begun since), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, token, part = ARGV[1], ARGV[2], tonumber(ARGV[3])
local orders, buyers, holds, paying = unpack(cmsgpack.unpack(ARGV[4]))
if read_caller(caller) ~= FORMAT then return { STATUS.UPGRADE_NEEDED } end
if part == 0 then
  redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
else
  local known = redis.call('HMGET', KEYS[1], 'token', 'part')
  if known[1] ~= token or part > known[2] + 1 then return { STATUS.CONFLICT } end
  if part <= tonumber(known[2]) then return { STATUS.DONE } end
end
redis.call('HSET', KEYS[1], 'token', token, 'part', part)
if #orders > 0 then redis.call('HSET', KEYS[4], unpack(orders)) end
if #buyers > 0 then redis.call('HSET', KEYS[3], unpack(buyers)) end
if #holds > 0 then redis.call('RPUSH', KEYS[5], unpack(holds)) end
if #paying > 0 then redis.call('RPUSH', KEYS[6], unpack(paying)) end
return { STATUS.DONE }
