--[[
admit: calls the next buyers of a sale's queue, as many as its rate and its stock allow by now, and
tells where the queue stands. It paces itself on the queue's own clock (lib/turns), so anybody may call
it at any time. A step is the positions that are called together; a token's life counts from it.
Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
         [8] queue  [9] tickets  [10] steps  [11] left  [12] ranks  [13] gone
ARGV     [1] caller  [2] definition id  [3] the last step that the caller knows, 0 for none
Returns  {status, server time ms, sale time ms, queue's time ms, why nobody is called now (a status,
         0: the sale sells), head, tail, lapsed, waiting, available units, held units, how many more may
         be called if all held units come back, next ticket, closed (-1: not yet), ranked (-1), lapses,
         live unused tokens, all that were ever called, how many more the stock would let be called now,
         keys, {step, from, to, at ms of the queue, …} of the live steps after [3]}
Events   queue closed

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, NEW_SERVER, STALE_DEFINITION, NO_QUEUE, DONE.
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/window"
--@include "lib/queue"
--@include "lib/pace"
local caller, definition_id, known_step = ARGV[1], ARGV[2], tonumber(ARGV[3])
local SKIPS_MAX, BEAT_MS = 1000, 1000
local sale, queue, refusal = begin_on_queue(caller, definition_id)
if not sale then return { refusal } end
local pace, now_ms, closed = queue.pace, queue.now_ms, closed_status(sale)

-- The live steps as they were at the last look, with what has happened since.
local texts, used, left, fields = {}, {}, {}, redis.call('HGETALL', KEYS[10])
for i = 1, #fields, 2 do
  local name = fields[i]
  if tonumber(name) then
    texts[tonumber(name)] = fields[i + 1]
  else
    local counts = string.sub(name, -1) == 'u' and used or left
    counts[tonumber(string.sub(name, 1, -3))] = tonumber(fields[i + 1])
  end
end
local steps, changed, dropped = {}, {}, {}
for number = queue.first, queue.step do
  local from, to, at_ms, unused, age = string.match(texts[number] or '', '(%d+):(%d+):(%d+):(%d+):(%d+)')
  if from then
    local step = { number = number, from = tonumber(from), to = tonumber(to), at_ms = tonumber(at_ms),
      unused = tonumber(unused), age = tonumber(age), changed = false }
    local unused_before, age_before = step.unused, step.age
    if used[number] then use_tokens(pace, step, used[number]) end
    if left[number] then step.unused = math.max(0, step.unused - left[number]) end
    if age_step(pace, step, now_ms) then
      steps[#steps + 1] = step
      step.changed = step.unused ~= unused_before or step.age ~= age_before
    else
      queue.lapsed, queue.lapses = step.to, queue.lapses + step.unused
      queue.first = number + 1
      dropped[#dropped + 1] = number
    end
    if used[number] then dropped[#dropped + 1] = number .. ':u' end
    if left[number] then dropped[#dropped + 1] = number .. ':l' end
  end
end

local available, held, stock = 0, 0, redis.call('HGETALL', KEYS[2])
for i = 1, #stock, 2 do
  local units = string.match(stock[i], ':(%l+)$')
  if units == 'available' then
    available = available + math.max(0, tonumber(stock[i + 1]))
  elseif units == 'held' then
    held = held + tonumber(stock[i + 1])
  end
end

local tail = tail_of(queue)
local waiting = math.max(0, tail - queue.head - redis.call('ZCARD', KEYS[11]))
local last, ahead = steps[#steps], outlook(pace, steps, now_ms)
local count, to = 0, queue.head
if not closed and (not last or now_ms - last.at_ms >= pause_ms_of(pace)) then
  count = call_count(pace, ahead, now_ms, available, waiting)
end
if count > 0 then
  -- Places that were given up are passed over; the next call goes on where this one has to stop.
  to = queue.head + count
  local gone = redis.call('ZRANGEBYSCORE', KEYS[11], '-inf', tail - 1, 'LIMIT', 0, SKIPS_MAX)
  local skipped = 0
  for _, position in ipairs(gone) do
    if tonumber(position) < to then
      to, skipped = math.min(to + 1, tail), skipped + 1
    end
  end
  if #gone == SKIPS_MAX and tonumber(gone[SKIPS_MAX]) < to then
    to = tonumber(gone[SKIPS_MAX]) + 1
  end
  count = to - queue.head - skipped
end

write_even_when_full()
close_list(sale, queue)
local moved = to > queue.head
local passed_ms = sale.raw_ms - queue.seen_ms
local wound = queue.sells ~= not closed or passed_ms < 0 or queue.sells and passed_ms >= BEAT_MS
if moved then
  -- Where all were given up nobody is called, and the next look may go on at once.
  if count > 0 then
    queue.step = queue.step + 1
    local step = take_step(pace, steps, ahead, now_ms, count)
    step.number, step.from, step.to, step.changed = queue.step, queue.head, to, true
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[11], '-inf', to - 1)
  queue.head = to
  waiting = math.max(0, waiting - count)
end
if #dropped > 0 then redis.call('HDEL', KEYS[10], unpack(dropped)) end
for _, step in ipairs(steps) do
  if step.changed then
    changed[#changed + 1], changed[#changed + 2] = step.number,
      string.format('%d:%d:%d:%d:%d', step.from, step.to, step.at_ms, step.unused, step.age)
  end
end
if #changed > 0 then redis.call('HSET', KEYS[10], unpack(changed)) end
if moved or wound or #changed > 0 or #dropped > 0 then
  redis.call('HSET', KEYS[8], 'head', queue.head, 'lapsed', queue.lapsed, 'step', queue.step, 'first',
    queue.first, 'used', table.concat(pace.used, ','), 'risk', table.concat(pace.risk, ','), 'credit',
    string.format('%.3f', pace.credit), 'paced_ms', pace.paced_ms, 'lapses', queue.lapses,
    'clock_ms', now_ms, 'seen_ms', sale.raw_ms, 'sells', closed and 0 or 1)
end

local news = {}
for _, step in ipairs(steps) do
  if step.number > known_step then
    news[#news + 1], news[#news + 2], news[#news + 3], news[#news + 4] =
      step.number, step.from, step.to, step.at_ms
  end
end
return { STATUS.DONE, sale.raw_ms, sale.now_ms, now_ms, closed or 0, queue.head, tail, queue.lapsed,
  waiting, available, held, reach_count(pace, ahead, available + held), queue.next, queue.closed or -1,
  queue.ranked or -1, queue.lapses, ahead.live, pace.risk[1],
  room_of(pace, ahead, available), redis.call('HGET', KEYS[8], 'keys'), news }
