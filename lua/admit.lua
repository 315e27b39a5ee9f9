--[[
admit: calls the next buyers of a sale's queue, as many as its rate and its stock allow by now, and
tells where the queue stands. It paces itself on the sale's time, so anybody may call it at any time.
A step is the positions that are called together; a token's life counts from it. Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
         [8] queue  [9] tickets  [10] steps  [11] left  [12] ranks
ARGV     [1] format  [2] definition id  [3] the last step that the caller knows, 0 for none
Returns  {status, server time ms, sale time ms, why nobody is called now (a status, 0: the sale sells),
         head, tail, lapsed, waiting, available units, held units, how many more may be called if all
         held units come back, next ticket, closed (-1: not yet), ranked (-1), lapses, live unused
         tokens, keys, {step, from, to, at ms, …} of the live steps after [3]}
Events   queue closed

Answers: UNKNOWN_SALE, UPGRADE_NEEDED, FENCED, STALE_DEFINITION, NO_QUEUE, DONE.
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/window"
--@include "lib/queue"
--@include "lib/pace"
local format, definition_id, known_step = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local SKIPS_MAX = 1000
local sale, queue, refusal = begin_on_queue(format, definition_id)
if not sale then return { refusal } end
local pace, now_ms, closed = queue.pace, sale.now_ms, closed_status(sale)

-- The live steps as they were at the last look, with what has happened since.
local steps, fields = {}, redis.call('HGETALL', KEYS[10])
local texts, dropped, changed = {}, {}, {}
for i = 1, #fields, 2 do texts[fields[i]] = fields[i + 1] end
for number = queue.first, queue.step do
  local name = tostring(number)
  local numbers = split_numbers(texts[name])
  if #numbers > 0 then
    local step = { number = number, from = numbers[1], to = numbers[2], at_ms = numbers[3],
      unused = numbers[4], age = numbers[5] }
    use_tokens(pace, step, tonumber(texts[name .. ':u'] or 0))
    step.unused = math.max(0, step.unused - tonumber(texts[name .. ':l'] or 0))
    if age_step(pace, step, now_ms) then
      steps[#steps + 1] = step
    else
      queue.lapsed, queue.lapses = step.to, queue.lapses + step.unused
      queue.first = number + 1
      dropped[#dropped + 1] = name
    end
    if texts[name .. ':u'] or texts[name .. ':l'] then
      dropped[#dropped + 1] = name .. ':u'
      dropped[#dropped + 1] = name .. ':l'
    end
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
local last = steps[#steps]
local count, to = 0, queue.head
if not closed and (not last or now_ms - last.at_ms >= pause_ms_of(pace)) then
  count = call_count(pace, steps, now_ms, available, waiting)
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
if moved then
  -- Where all were given up nobody is called, and the next look may go on at once.
  if count > 0 then
    queue.step = queue.step + 1
    local step = take_step(pace, steps, now_ms, count)
    step.number, step.from, step.to = queue.step, queue.head, to
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[11], '-inf', to - 1)
  queue.head = to
  waiting = math.max(0, waiting - count)
end
if #dropped > 0 then redis.call('HDEL', KEYS[10], unpack(dropped)) end
for _, step in ipairs(steps) do
  local text = string.format('%d:%d:%d:%d:%d', step.from, step.to, step.at_ms, step.unused, step.age)
  if texts[tostring(step.number)] ~= text then
    changed[#changed + 1], changed[#changed + 2] = step.number, text
  end
end
if #changed > 0 then redis.call('HSET', KEYS[10], unpack(changed)) end
if moved or #changed > 0 or #dropped > 0 then
  redis.call('HSET', KEYS[8], 'head', queue.head, 'lapsed', queue.lapsed, 'step', queue.step, 'first',
    queue.first, 'used', table.concat(pace.used, ','), 'risk', table.concat(pace.risk, ','), 'credit',
    string.format('%.3f', pace.credit), 'paced_ms', pace.paced_ms, 'lapses', queue.lapses)
end

local live, news = outlook(pace, steps, now_ms), {}
for _, step in ipairs(steps) do
  if step.number > known_step then
    news[#news + 1], news[#news + 2], news[#news + 3], news[#news + 4] =
      step.number, step.from, step.to, step.at_ms
  end
end
return { STATUS.DONE, sale.raw_ms, now_ms, closed or 0, queue.head, tail, queue.lapsed, waiting,
  available, held, reach_count(pace, steps, now_ms, available + held), queue.next, queue.closed or -1,
  queue.ranked or -1, queue.lapses, live, redis.call('HGET', KEYS[8], 'keys'), news }
