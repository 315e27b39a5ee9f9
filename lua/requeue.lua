--[[
requeue: puts held and paying orders that are in no deadline queue back into theirs, where they stand
in order of deadline; without that they would never lapse. An order that is in its queue, or that has
moved on, is left alone: no id may stand in a queue twice, or a sweep that met both would give its
units back twice. Repeating it changes nothing. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] caller  [2] order ids in msgpack, at most 1,000
Returns  {status, orders that were put back}
Events   none

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, CONFLICT (a queue is too long to be searched
while the sale runs; nothing was changed), DONE.
]]
--@include "lib/status"
--@include "lib/sale"
local caller, ids = ARGV[1], cmsgpack.unpack(ARGV[2])
-- A queue of this length is searched in some 20 ms, and nobody else is served meanwhile.
local QUEUE_MAX = 100000
local CHUNK = 1000
check_keys()
local sale, refusal = read_sale(caller)
if not sale then return { refusal, 0 } end
if redis.call('LLEN', KEYS[5]) > QUEUE_MAX or redis.call('LLEN', KEYS[6]) > QUEUE_MAX then
  return { STATUS.CONFLICT, 0 }
end

-- The deadlines of those of some orders that wait in this state. A record that is none has no say.
local function deadlines_of(order_ids, state)
  local deadlines = {}
  for at = 1, #order_ids, CHUNK do
    local upto = math.min(at + CHUNK - 1, #order_ids)
    local records = redis.call('HMGET', KEYS[4], unpack(order_ids, at, upto))
    for i = at, upto do
      local text = records[i - at + 1] or ''
      deadlines[order_ids[i]] = tonumber(string.match(text, '^' .. state .. '%w......(%d+)|'))
    end
  end
  return deadlines
end

-- The head of a queue as it must be, how many entries of today's it replaces, and how many it adds.
-- What follows it has later deadlines and stays.
local function new_head(queue, state)
  local deadlines, missing, last = deadlines_of(ids, state), {}, 0
  local there = {}
  for _, id in ipairs(queue) do there[id] = true end
  for _, id in ipairs(ids) do
    if deadlines[id] and not there[id] then
      there[id] = true
      missing[#missing + 1] = id
      last = math.max(last, deadlines[id])
    end
  end
  if #missing == 0 then return {}, 0, 0 end
  local head, replaced = {}, 0
  for at = 1, #queue, CHUNK do
    local part = { unpack(queue, at, math.min(at + CHUNK - 1, #queue)) }
    local known, later = deadlines_of(part, state), false
    for _, id in ipairs(part) do
      local deadline = known[id]
      if deadline and deadline > last then
        later = true
        break
      end
      replaced = replaced + 1
      -- One that has moved on would be dropped by the next sweep.
      if deadline then
        head[#head + 1] = id
        deadlines[id] = deadline
      end
    end
    if later then break end
  end
  for _, id in ipairs(missing) do head[#head + 1] = id end
  table.sort(head, function(a, b)
    if deadlines[a] ~= deadlines[b] then return deadlines[a] < deadlines[b] end
    return a < b
  end)
  return head, replaced, #missing
end

local holds, holds_replaced, holds_missing = new_head(redis.call('LRANGE', KEYS[5], 0, -1), 'h')
local paying, paying_replaced, paying_missing = new_head(redis.call('LRANGE', KEYS[6], 0, -1), 'p')
if holds_missing + paying_missing == 0 then return { STATUS.DONE, 0 } end
write_even_when_full()
if holds_replaced > 0 then redis.call('LTRIM', KEYS[5], holds_replaced, -1) end
if paying_replaced > 0 then redis.call('LTRIM', KEYS[6], paying_replaced, -1) end
for i = #holds, 1, -1 do redis.call('LPUSH', KEYS[5], holds[i]) end
for i = #paying, 1, -1 do redis.call('LPUSH', KEYS[6], paying[i]) end
return { STATUS.DONE, holds_missing + paying_missing }
