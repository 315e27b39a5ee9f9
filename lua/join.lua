--[[
join: gives each buyer of a batch a ticket of the sale's queue, one after the other. A buyer has one:
joining again finds it, until its turn is over. Whoever has had a turn may join again at the end,
but not in a draw.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
         [8] queue  [9] tickets  [10] steps  [11] left  [12] ranks  [13] gone
ARGV     [1] caller  [2] definition id  [3] the batch in msgpack, at most 1,000 buyers, by columns:
         {not_after ms, buyers, weights}
Returns  {ms of patience's clock (lib/sale; 0: no such sale, or none that this server is trusted with), 0,
         answers, seq of the sale (0: it was not read)}: for each buyer twice the number of a new ticket, twice the number
         of a known one plus one, or the status of a refusal, negative
Events   queue closed

The first that applies is the answer: UNKNOWN_SALE → UPGRADE_NEEDED → FENCED → NEW_SERVER → STALE_DEFINITION →
NO_QUEUE → the known ticket → ENDED → NOT_OPEN → JOINS_CLOSED → TOO_LATE → the new ticket.
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/queue"
local caller, definition_id = ARGV[1], ARGV[2]
local not_afters, buyers, weights = unpack(cmsgpack.unpack(ARGV[3]))
local answers = {}
check_keys()
check_queue_keys()

local function refuse_all(status, patience_ms, seq)
  for i = 1, #buyers do answers[i] = -status end
  return { patience_ms, 0, answers, seq }
end

local sale, refusal = read_sale(caller)
if not sale then
  local is_here = refusal ~= STATUS.UNKNOWN_SALE and refusal ~= STATUS.NEW_SERVER
  return refuse_all(refusal, is_here and 1 or 0, 0)
end
read_clock(sale)
if definition_id ~= sale.definition_id then
  return refuse_all(STATUS.STALE_DEFINITION, sale.patience_ms, sale.seq)
end
local queue = read_queue(sale)
if not queue then return refuse_all(STATUS.NO_QUEUE, sale.patience_ms, sale.seq) end

local closed = nil
if sale.state == 'closed' or sale.state == 'settled' or sale.now_ms >= sale.ends_ms then
  closed = STATUS.ENDED
elseif sale.now_ms < queue.joins_ms then
  closed = STATUS.NOT_OPEN
elseif queue.mode == 'draw' and queue.closed then
  closed = STATUS.JOINS_CLOSED
end

-- Whether a ticket's turn is over, so that its buyer may join again.
local function is_over(number)
  if queue.mode == 'draw' then return false end
  local position = position_of(queue, number)
  return position ~= nil and position < queue.lapsed
end

local known, given, pairs_of = redis.call('HMGET', KEYS[9], unpack(buyers)), {}, {}
local gone = {}
local next_before = queue.next
for i, buyer in ipairs(buyers) do
  local text = given[buyer] or known[i]
  local number = text and tonumber(string.match(text, '^%d+'))
  if number and not given[buyer] and not closed and is_over(number) then
    -- The closed list is published, and stays what it was.
    if queue.closed and number < queue.closed then
      gone[#gone + 1], gone[#gone + 2] = buyer .. '|' .. number, text
    end
    number = nil
  end
  if number then
    answers[i] = 2 * number + 1
  elseif closed then
    answers[i] = -closed
  elseif not_afters[i] < sale.patience_ms then
    answers[i] = -STATUS.TOO_LATE
  else
    answers[i] = 2 * queue.next
    text = string.format('%d', queue.next)
    if weights[i] ~= 1 then text = text .. ':' .. weights[i] end
    given[buyer] = text
    pairs_of[#pairs_of + 1], pairs_of[#pairs_of + 2] = buyer, text
    queue.next = queue.next + 1
  end
end
if queue.next > next_before then
  close_list(sale, queue)
  redis.call('HSET', KEYS[9], unpack(pairs_of))
  if #gone > 0 then redis.call('HSET', KEYS[13], unpack(gone)) end
  redis.call('HSET', KEYS[8], 'next', queue.next)
end
return { sale.patience_ms, 0, answers, sale.seq }
