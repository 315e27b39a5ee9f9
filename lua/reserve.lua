--[[
reserve: decides a batch of orders, one after the other, as if each had been alone.
An accepted order has taken its units, its place in the buyer's limits, its record, its deadline and
its event in this one step; a refused one has changed nothing. Of a cart either every line is
accepted or none. A known id is answered with its record and never taken twice. An engine that knows
of no queue sells nothing where there is one.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events, and in a sale
         with a queue [8] queue  [9] tickets  [10] steps  [11] left  [12] ranks
ARGV     [1] caller  [2] definition id  [3] the batch in msgpack, at most 1,000 orders, by columns:
         {not_after ms, order ids, buyers, carts (lib/units), prints, attrs}, and with a queue the
         step that called each buyer, the ms of the queue's clock at which the buyer's token lapses
         (0: no token), and the ticket's number; without these three, prints and attrs are left out
         when no order of the batch has attrs
Returns  {ms of patience's clock (lib/sale; 0: no such sale), deadline ms of what was created, answers, seq of the sale
         (0: it was not read)}: a status for each order, or its record where the order exists
Events   held; up to 32 orders share one stream entry, a field each, and the entry's id carries the
         seq of the last: one XADD an order would be a third of the script's time and 12 bytes more

The first that applies is the answer: NEW_SERVER (unless the sale is fenced or of another format; a
server that is not trusted yet says nothing of any order) → STALE_DEFINITION (no record may be told by
it) → EXISTS or CONFLICT (the id is known) → UNKNOWN_SALE → UPGRADE_NEEDED (as well where there is a queue
and no steps come, unless the sale is fenced) → FENCED → UNKNOWN_SKU → PAUSED → NOT_OPEN → ENDED →
TOKEN_NEEDED → TOKEN_EXPIRED → UNKNOWN_TICKET → NOT_ALLOWED → TOO_LATE → ORDER_LIMIT → SKU_LIMIT →
BUYER_LIMIT → SOLD_OUT → INSUFFICIENT → CREATED.
]]
--@include "lib/status"
--@include "lib/units"
--@include "lib/limits"
--@include "lib/sale"
--@include "lib/window"
--@include "lib/turns"
local caller, definition_id = ARGV[1], ARGV[2]
local not_afters, ids, buyers, carts, prints, attrs, steps, untils, numbers = unpack(cmsgpack.unpack(ARGV[3]))
local count = #ids
local ENTRY_MAX = 32
local NO_ATTRS = '------'

check_keys()
if steps then redis.call('HLEN', KEYS[8]) redis.call('HLEN', KEYS[10]) end
local sale, broken = read_sale(caller)
if broken == STATUS.NEW_SERVER then
  for i = 1, count do ids[i] = broken end
  return { 0, 0, ids, 0 }
end
local has_queue = sale and sale.has_queue
if has_queue and not steps then sale, broken = nil, STATUS.UPGRADE_NEEDED end
-- A sale that may not be read further has a definition as well.
local defined = sale and sale.definition_id or redis.call('HGET', KEYS[1], 'definition_id')
local stale = defined and defined ~= definition_id
local known = redis.call('HMGET', KEYS[4], unpack(ids))
local purses = redis.call('HMGET', KEYS[3], unpack(buyers))
local tickets = numbers and (has_queue and redis.call('HMGET', KEYS[9], unpack(buyers)) or {})
local clock = steps and has_queue and redis.call('HMGET', KEYS[8], 'clock_ms', 'seen_ms', 'sells')

local closed = nil
if sale then
  read_clock(sale)
  if not stale then closed = closed_status(sale) end
end

-- What a cart's text means, worked out once for all orders of the batch that carry the same cart.
local carts_by_text, indexes = {}, {}
for i = 1, count do
  local text = carts[i]
  if not carts_by_text[text] then
    local lines, units = read_units(text)
    carts_by_text[text] = { lines = lines, units = units }
    for k = 1, #lines, 2 do indexes[lines[k]] = true end
  end
end

-- Stock of the SKUs this batch touches, by index: read once, counted here, written at the end.
local available, held, sku_limits, leased = {}, {}, {}, {}
if sale then
  local fields, stock_of = {}, {}
  for index in pairs(indexes) do
    stock_of[#stock_of + 1] = index
    fields[#fields + 1] = index .. ':available'
    fields[#fields + 1] = index .. ':held'
    fields[#fields + 1] = index .. ':limit'
    fields[#fields + 1] = index .. ':lease'
  end
  local stock = redis.call('HMGET', KEYS[2], unpack(fields))
  for i, index in ipairs(stock_of) do
    available[index], held[index] = tonumber(stock[4 * i - 3]), tonumber(stock[4 * i - 2])
    sku_limits[index], leased[index] = tonumber(stock[4 * i - 1]), is_leased(stock[4 * i], sale)
  end
end

-- Whether a known record was made by this very request. Payments may follow the buyer in it.
local function same_order(record, print6, cart_text, buyer)
  local payload = '|' .. cart_text .. '|' .. buyer
  local from = string.find(record, '|', 9, true)
  local after = from + #payload
  return string.sub(record, 3, 8) == print6
    and string.sub(record, from, after - 1) == payload
    and (after > #record or string.sub(record, after, after) == '|')
end

local function stock_refusal(lines)
  local refusal = nil
  for i = 1, #lines, 2 do
    local left = leased[lines[i]] and 0 or available[lines[i]]
    if left < lines[i + 1] then
      if left <= 0 then return STATUS.SOLD_OUT end
      refusal = STATUS.INSUFFICIENT
    end
  end
  return refusal
end

-- A buyer who has had orders: a refusal, or what the buyer has with this one.
local function purse_with(purse_text, cart, not_after)
  local purse, units, lapsed = read_purse(purse_text)
  if sale.max_lapsed > 0 and lapsed >= sale.max_lapsed then return STATUS.NOT_ALLOWED end
  if not_after < sale.patience_ms then return STATUS.TOO_LATE end
  local refusal = limit_refusal(cart.lines, cart.units, purse, units, sku_limits, sale)
  if refusal then return refusal end
  for k = 1, #cart.lines, 2 do
    local index = cart.lines[k]
    purse[index] = (purse[index] or 0) + cart.lines[k + 1]
  end
  return nil, write_purse(purse, lapsed)
end

local now_ms, patience_ms, deadline_ms, turn_ms = 0, 0, 0, 0
if sale then
  -- The sale's own time may stand still while a clock that was set back catches up; the caller's
  -- patience does not, so not_after is measured by a clock of its own.
  now_ms, patience_ms = sale.now_ms, sale.patience_ms
  turn_ms = clock and clock[1] and turn_clock(sale, unpack(clock)) or now_ms
  deadline_ms = now_ms + sale.hold_ms
  local tail = string.format('%d|', deadline_ms - sale.origin_ms)
  local nothing = {}
  for text, cart in pairs(carts_by_text) do
    cart.head = tail .. text .. '|'
    for k = 1, #cart.lines, 2 do
      if not available[cart.lines[k]] then cart.unknown = true end
    end
    if not cart.unknown then
      -- What a buyer without any order is refused; most buyers of a flash sale have none.
      cart.refusal = limit_refusal(cart.lines, cart.units, nothing, 0, sku_limits, sale)
    end
  end
end

-- From here on nothing is read any more, so the events can be written as the orders are decided.
-- Tables that have served are used again, because growing new ones costs more than filling them:
-- `known` becomes the answers, and the front of `ids` the orders accepted.
local made, purse_at = {}, {}
local records, purse_pairs, events, used = {}, {}, {}, {}
local taken, changed, pending, prefix = 0, 0, 0, string.format('%d-', now_ms)
local CREATED, TOO_LATE = STATUS.CREATED, STATUS.TOO_LATE

for i = 1, count do
  local id, buyer, cart_text, print6 = ids[i], buyers[i], carts[i], prints and prints[i] or NO_ATTRS
  local record = known[i] or made[id]
  local answer
  if stale then
    answer = STATUS.STALE_DEFINITION
  elseif record then
    answer = same_order(record, print6, cart_text, buyer) and record or STATUS.CONFLICT
  elseif broken then
    answer = broken
  else
    local cart = carts_by_text[cart_text]
    if cart.unknown then
      answer = STATUS.UNKNOWN_SKU
    elseif closed then
      answer = closed
    elseif untils and untils[i] <= turn_ms then
      answer = untils[i] == 0 and STATUS.TOKEN_NEEDED or STATUS.TOKEN_EXPIRED
    elseif tickets and tonumber(string.match(tickets[i] or '', '^%d+')) ~= numbers[i] then
      -- A ticket that was given up takes its token with it, also when the buyer has joined again.
      answer = STATUS.UNKNOWN_TICKET
    else
      local slot = purse_at[buyer]
      local purse_text = slot and purse_pairs[slot] or purses[i]
      local new_purse = cart_text
      if purse_text then
        answer, new_purse = purse_with(purse_text, cart, not_afters[i])
      else
        answer = not_afters[i] < patience_ms and TOO_LATE or cart.refusal
      end
      answer = answer or stock_refusal(cart.lines)
      if not answer then
        answer = CREATED
        local lines = cart.lines
        for k = 1, #lines, 2 do
          local index, quantity = lines[k], lines[k + 1]
          available[index] = available[index] - quantity
          held[index] = held[index] + quantity
        end
        record = 'h1' .. print6 .. cart.head .. buyer
        made[id] = record
        taken = taken + 1
        ids[taken] = id
        records[2 * taken - 1], records[2 * taken] = id, record
        if steps and not purse_text then
          -- A called buyer's first order: the queue learns who comes (lib/pace).
          local use = used[steps[i]] or { users = 0, units = 0 }
          use.users, use.units = use.users + 1, use.units + cart.units
          used[steps[i]] = use
        end
        if slot then
          purse_pairs[slot] = new_purse
        else
          purse_pairs[changed + 1], purse_pairs[changed + 2] = buyer, new_purse
          changed = changed + 2
          purse_at[buyer] = changed
        end
        events[pending + 1], events[pending + 2] = id, 'held||' .. record .. '|' .. (attrs and attrs[i] or '')
        pending = pending + 2
        if pending == 2 * ENTRY_MAX then
          redis.call('XADD', KEYS[7], prefix .. (sale.seq + taken), unpack(events, 1, pending))
          pending = 0
        end
      end
    end
  end
  known[i] = answer
end

if closed and sale.jumped then
  pause_for_jump(sale)
elseif taken > 0 then
  sale.seq = sale.seq + taken
  if pending > 0 then redis.call('XADD', KEYS[7], prefix .. sale.seq, unpack(events, 1, pending)) end
  local stock = {}
  for index, units in pairs(available) do
    stock[#stock + 1], stock[#stock + 2] = index .. ':available', units
    stock[#stock + 1], stock[#stock + 2] = index .. ':held', held[index]
  end
  redis.call('HSET', KEYS[2], unpack(stock))
  redis.call('HSET', KEYS[4], unpack(records))
  redis.call('HSET', KEYS[3], unpack(purse_pairs))
  redis.call('RPUSH', KEYS[5], unpack(ids, 1, taken))
  for step, use in pairs(used) do
    -- A step that has lapsed by now is counted already.
    if redis.call('HEXISTS', KEYS[10], step) == 1 then
      redis.call('HINCRBY', KEYS[10], step .. ':u', use.users)
    end
    redis.call('HINCRBY', KEYS[8], 'users', use.users)
    redis.call('HINCRBY', KEYS[8], 'units', use.units)
  end
  write_sale(sale)
end
return { patience_ms, deadline_ms, known, sale and sale.seq or 0 }
