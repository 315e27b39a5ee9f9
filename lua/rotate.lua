--[[
rotate: replaces the key that signs the tickets and tokens of a sale's queue, in two calls. The first
brings the new key, which everybody accepts from the next look on; the second, when everybody has
looked, lets it sign. There is one new key at a time: whoever wants to rotate meanwhile takes part in
it, so no key that has signed is lost but by age. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
         [8] queue  [9] tickets  [10] steps  [11] left  [12] ranks  [13] gone
ARGV     [1] caller  [2] definition id  [3] first call: the keys as the caller knows them, with commas;
         second: nothing  [4] the new key
Returns  {status, first call: the key that is to sign; else nothing}
Events   none

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, STALE_DEFINITION, NO_QUEUE, CONFLICT (the keys
are not what the caller knows), ALREADY (first call: another new key is on its way; second: this one
signs, or did), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/queue"
local caller, definition_id, known, new = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
-- As KEYS_MAX in seckill/tokens.py, and one of them is the new one.
local OLD_MAX = 2
local sale, _, refusal = begin_on_queue(caller, definition_id)
if not sale then return { refusal, '' } end
local found = redis.call('HMGET', KEYS[8], 'keys', 'coming')
local text, coming = found[1], found[2]
local keys = {}
for key in string.gmatch(text, '[^,]+') do keys[#keys + 1] = key end

if known == '' then
  if coming ~= new then return { STATUS.ALREADY, '' } end
  local signing = { new }
  for _, key in ipairs(keys) do
    if key ~= new then signing[#signing + 1] = key end
  end
  write_even_when_full()
  redis.call('HSET', KEYS[8], 'keys', table.concat(signing, ','))
  redis.call('HDEL', KEYS[8], 'coming')
  return { STATUS.DONE, '' }
end

-- Also one whose rotation was cut off: it is not known yet to all who have begun since.
if coming then return { STATUS.ALREADY, coming } end
if text ~= known then return { STATUS.CONFLICT, '' } end
write_even_when_full()
redis.call('HSET', KEYS[8], 'keys', table.concat(keys, ',', 1, math.min(#keys, OLD_MAX)) .. ',' .. new,
  'coming', new)
return { STATUS.DONE, new }
