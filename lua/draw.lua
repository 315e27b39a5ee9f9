--[[
draw: puts the ranks of the closed list into effect, which were written to [12] before, and reveals the
seed. From then on buyers are called in order of their ranks.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
         [8] queue  [9] tickets  [10] steps  [11] left  [12] ranks  [13] gone
ARGV     [1] caller  [2] definition id  [3] the digest that the ranks were made of  [4] the public value
         that they were made of, may be empty  [5] tickets that were ranked
Returns  {status}
Events   queue drawn

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, STALE_DEFINITION, NO_QUEUE, ALREADY, CONFLICT
(they were made of something else, or are not all there), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/queue"
local caller, definition_id, digest = ARGV[1], ARGV[2], ARGV[3]
local value, ranked = ARGV[4], ARGV[5]
local sale, queue, refusal = begin_on_queue(caller, definition_id)
if not sale then return { refusal } end
if queue.ranked then return { STATUS.ALREADY } end
local known = redis.call('HMGET', KEYS[8], 'digest', 'public_value', 'listed', 'seed')
if known[1] ~= digest or (known[2] or '') ~= value or known[3] ~= ranked
  or redis.call('STRLEN', KEYS[12]) ~= 4 * queue.closed then
  return { STATUS.CONFLICT }
end
emit(sale, 'sale', 'queue_drawn|' .. ranked .. '|' .. digest .. '|' .. known[4] .. '|' .. value)
redis.call('HSET', KEYS[8], 'ranked', ranked)
write_sale(sale)
return { STATUS.DONE }
