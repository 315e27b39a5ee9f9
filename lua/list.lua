--[[
list: writes down the digest of the closed list of tickets, before anybody knows the order that will be
made of it. The list does not change any more, so everybody who reads it finds the same digest.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
         [8] queue  [9] tickets  [10] steps  [11] left  [12] ranks  [13] gone
ARGV     [1] caller  [2] definition id  [3] digest in hex  [4] tickets in the list
Returns  {status}
Events   queue listed

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, STALE_DEFINITION, NO_QUEUE, NOT_OPEN (the list
is not closed), ALREADY, CONFLICT (another digest), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/queue"
local caller, definition_id, digest, count = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local sale, queue, refusal = begin_on_queue(caller, definition_id)
if not sale then return { refusal } end
if not queue.closed or queue.closes then return { STATUS.NOT_OPEN } end
local known = redis.call('HGET', KEYS[8], 'digest')
if known then return { known == digest and STATUS.ALREADY or STATUS.CONFLICT } end
emit(sale, 'sale', 'queue_listed|' .. count .. '|' .. digest)
redis.call('HSET', KEYS[8], 'digest', digest, 'listed', count)
write_sale(sale)
return { STATUS.DONE }
