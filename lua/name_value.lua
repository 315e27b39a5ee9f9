--[[
name_value: writes down the public value that takes part in a draw. It has one for ever.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
         [8] queue  [9] tickets  [10] steps  [11] left  [12] ranks  [13] gone
ARGV     [1] caller  [2] definition id  [3] the value
Returns  {status}
Events   queue valued

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, STALE_DEFINITION, NO_QUEUE, NOT_OPEN (the
list's digest is not written down yet), ALREADY, CONFLICT (another value), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/queue"
local caller, definition_id, value = ARGV[1], ARGV[2], ARGV[3]
local sale, _, refusal = begin_on_queue(caller, definition_id)
if not sale then return { refusal } end
local known = redis.call('HMGET', KEYS[8], 'digest', 'public_value')
if not known[1] then return { STATUS.NOT_OPEN } end
if known[2] then return { known[2] == value and STATUS.ALREADY or STATUS.CONFLICT } end
emit(sale, 'sale', 'queue_valued|' .. value)
redis.call('HSET', KEYS[8], 'public_value', value)
write_sale(sale)
return { STATUS.DONE }
