--[[
leave: a buyer gives a ticket up. Who waits behind moves on by one; a buyer who was called and has not
bought frees the turn. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
         [8] queue  [9] tickets  [10] steps  [11] left  [12] ranks  [13] gone
ARGV     [1] caller  [2] definition id  [3] buyer
Returns  {status}
Events   none

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, STALE_DEFINITION, NO_QUEUE, UNKNOWN_TICKET,
DRAWING (the list is closed and not ranked yet), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/queue"
local caller, definition_id, buyer = ARGV[1], ARGV[2], ARGV[3]
local sale, queue, refusal = begin_on_queue(caller, definition_id)
if not sale then return { refusal } end
local text = redis.call('HGET', KEYS[9], buyer)
if not text then return { STATUS.UNKNOWN_TICKET } end
local number = tonumber(string.match(text, '^%d+'))
if queue.closed and not queue.ranked then return { STATUS.DRAWING } end

local position = position_of(queue, number)
local freed = nil
if position and position < queue.head and position >= queue.lapsed
  and redis.call('HEXISTS', KEYS[3], buyer) == 0 then
  for step = queue.first, queue.step do
    local numbers = split_numbers(redis.call('HGET', KEYS[10], step) or nil)
    if #numbers > 0 and position >= numbers[1] and position < numbers[2] then freed = step end
  end
end
write_even_when_full()
redis.call('HDEL', KEYS[9], buyer)
if queue.closed and number < queue.closed then
  -- The closed list is published, and stays what it was.
  redis.call('HSET', KEYS[13], buyer .. '|' .. number, text)
end
if freed then
  redis.call('HINCRBY', KEYS[10], freed .. ':l', 1)
elseif position and position >= queue.head then
  redis.call('ZADD', KEYS[11], position, position)
end
return { STATUS.DONE }
