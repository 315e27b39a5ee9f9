-- A sale's queue: its header, its live steps, and where a ticket stands.
--
-- A ticket's number counts the joins. Its position is the number, or, where tickets are ranked, the
-- rank, with those who came after the list was closed behind all that were ranked. Positions below
-- `head` have been called, those below `lapsed` have had their time. Turns are timed by the queue's own
-- clock (lib/turns).
--   queue  (hash)    mode, next (number), closed (numbers in the closed list; not there before),
--                    ranked (positions given by rank; not there before), head, lapsed, step (number of the last),
--                    first (of the first live one), what lib/pace learns, counts, keys, coming (a
--                    key that is to sign, see rotate.lua; else not there), the draw, and the clock: clock_ms,
--                    seen_ms, sells
--   tickets (hash)   buyer → number, or number:weight
--   steps  (hash)    step → from:to:at ms:unused:age; step:u → tokens used since the last look,
--                    step:l → given up since
--   left   (zset)    positions that were given up before they were called
--   gone   (hash)    buyer|number → what tickets had, for tickets of the closed list that were given up
--                    or followed by another one since
--   ranks  (string)  four bytes a number, little-endian; NO_RANK for a ticket that was given up
--@include "lib/turns"
local NO_RANK = 4294967295

local function split_numbers(text)
  local numbers = {}
  for number in string.gmatch(text or '', '[^,:]+') do numbers[#numbers + 1] = tonumber(number) end
  return numbers
end

-- Returns the queue's header, or nil where there is none. One that the sale's header knows nothing of is
-- left from a sale that was lost under the same id. After read_clock. Closes the list of tickets
-- when its time has come, in memory: close_list writes it down.
local function read_queue(sale)
  local h = redis.call('HMGET', KEYS[8], 'mode', 'next', 'closed', 'ranked', 'head', 'lapsed', 'step',
    'first', 'joins_ms', 'draw_ms', 'life_ms', 'rate_per_s', 'overbook_max', 'used', 'risk', 'users',
    'units', 'credit', 'paced_ms', 'lapses', 'each', 'clock_ms', 'seen_ms', 'sells')
  if not h[1] or not sale.has_queue then return nil end
  local queue = {
    mode = h[1], next = tonumber(h[2]), closed = tonumber(h[3]), ranked = tonumber(h[4]),
    head = tonumber(h[5]), lapsed = tonumber(h[6]), step = tonumber(h[7]), first = tonumber(h[8]),
    joins_ms = tonumber(h[9]), draw_ms = tonumber(h[10]), lapses = tonumber(h[20]),
    now_ms = turn_clock(sale, h[22], h[23], h[24]), seen_ms = tonumber(h[23]), sells = h[24] == '1',
    pace = {
      each = tonumber(h[21]), lapsed = tonumber(h[6]) > 0,
      life_ms = tonumber(h[11]), rate_per_s = tonumber(h[12]), overbook_max = tonumber(h[13]),
      used = split_numbers(h[14]), risk = split_numbers(h[15]), users = tonumber(h[16]),
      units = tonumber(h[17]), credit = tonumber(h[18]), paced_ms = tonumber(h[19]),
    },
  }
  if queue.mode ~= 'queue' and not queue.closed and sale.now_ms >= queue.draw_ms then
    queue.closed, queue.closes = queue.next, true
  end
  return queue
end

-- One past the last position that somebody may stand at; 0 while the tickets are not ranked yet.
local function tail_of(queue)
  if queue.mode == 'queue' then return queue.next end
  if not queue.ranked then return 0 end
  return queue.ranked + queue.next - queue.closed
end

-- Where a number stands; nil while that is not drawn yet.
local function position_of(queue, number)
  if queue.mode == 'queue' then return number end
  if not queue.ranked then return nil end
  if number >= queue.closed then return queue.ranked + number - queue.closed end
  local bytes = redis.call('GETRANGE', KEYS[12], number * 4, number * 4 + 3)
  local rank = #bytes == 4 and struct.unpack('<I4', bytes) or NO_RANK
  return rank ~= NO_RANK and rank or nil
end

-- Writes down that the list is closed, with its event, once.
local function close_list(sale, queue)
  if not queue.closes then return end
  queue.closes = false
  emit(sale, 'sale', 'queue_closed|' .. queue.closed)
  redis.call('HSET', KEYS[8], 'closed', queue.closed, 'closed_ms', sale.now_ms)
  write_sale(sale)
end

-- What a wrong key must not find out after the first write.
local function check_queue_keys()
  redis.call('HLEN', KEYS[9])
  redis.call('HLEN', KEYS[10])
  redis.call('ZCARD', KEYS[11])
  redis.call('STRLEN', KEYS[12])
  redis.call('HLEN', KEYS[13])
end

-- How every verb on a queue but join begins: returns the sale and its queue, or nil twice and what the
-- verb is refused with.
local function begin_on_queue(caller, definition_id)
  check_keys()
  check_queue_keys()
  local sale, refusal = read_sale(caller)
  if not sale then return nil, nil, refusal end
  read_clock(sale)
  if definition_id ~= sale.definition_id then return nil, nil, STATUS.STALE_DEFINITION end
  local queue = read_queue(sale)
  if not queue then return nil, nil, STATUS.NO_QUEUE end
  return sale, queue
end
