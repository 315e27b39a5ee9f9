--[[
reserve: decides a batch of orders, one after the other, as if each had been alone.
An accepted order has taken its units, its place in the buyer's limits, its record, its deadline and
its event in this one step; a refused one has changed nothing. Of a cart either every line is
accepted or none. A known id is answered with its record and never taken twice.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events
ARGV     [1] format  [2] definition id  [3] the batch in msgpack, by columns of equal length:
         {order ids, buyers, prints, not_after ms, carts (lib/units), attrs}, at most 1,000 lines
Returns  {server time ms (0: no such sale), deadline ms of what was created, answer, answer, …}: a
         status for each order, or its record where the order exists
Events   held; up to 32 orders share one stream entry, a field each, and the entry's id carries the
         seq of the last: one XADD an order would be a third of the script's time and 12 bytes more

The first that applies is the answer: EXISTS or CONFLICT (the id is known) → UNKNOWN_SALE →
UPGRADE_NEEDED → STALE_DEFINITION → UNKNOWN_SKU → PAUSED → NOT_OPEN → ENDED → NOT_ALLOWED →
TOO_LATE → ORDER_LIMIT → SKU_LIMIT → BUYER_LIMIT → SOLD_OUT → INSUFFICIENT → CREATED.
]]
--@include "lib/status"
--@include "lib/units"
--@include "lib/limits"
--@include "lib/sale"
local format, definition_id = tonumber(ARGV[1]), ARGV[2]
local ids, buyers, prints, not_afters, carts, attrs = unpack(cmsgpack.unpack(ARGV[3]))
local count = #ids
local ENTRY_MAX = 32

local sale, broken = read_sale(format)
local known = redis.call('HMGET', KEYS[4], unpack(ids))
local purses = redis.call('HMGET', KEYS[3], unpack(buyers))

local closed = nil
if sale then
  read_clock(sale)
  if definition_id ~= sale.definition_id then
    broken = STATUS.STALE_DEFINITION
  elseif sale.jumped then
    closed = STATUS.PAUSED
  elseif sale.state == 'paused' then
    closed = STATUS.PAUSED
  elseif sale.state == 'created' then
    closed = STATUS.NOT_OPEN
  elseif sale.state ~= 'open' then
    closed = STATUS.ENDED
  elseif sale.now_ms < sale.opens_ms then
    closed = STATUS.NOT_OPEN
  elseif sale.now_ms >= sale.ends_ms then
    closed = STATUS.ENDED
  end
end

-- Stock of the SKUs this batch touches, by index; read once, changed here, written at the end.
local available, held, sku_limits = {}, {}, {}
local function load_stock(index)
  local s = redis.call('HMGET', KEYS[2], index .. ':available', index .. ':held', index .. ':limit')
  if not s[1] then return false end
  available[index], held[index], sku_limits[index] = tonumber(s[1]), tonumber(s[2]), tonumber(s[3])
  return true
end

-- What a cart's text means, worked out once for all orders of the batch that carry the same cart.
local NO_UNITS = {}
local meanings = {}
local function read_cart(text)
  local lines, units = read_units(text)
  local cart = { lines = lines, units = units }
  for i = 1, #lines, 2 do
    if not available[lines[i]] and not load_stock(lines[i]) then cart.unknown = true end
  end
  if not cart.unknown then
    cart.fresh_refusal = limit_refusal(lines, units, NO_UNITS, 0, sku_limits, sale)
  end
  meanings[text] = cart
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
    local left = available[lines[i]]
    if left < lines[i + 1] then
      if left <= 0 then return STATUS.SOLD_OUT end
      refusal = STATUS.INSUFFICIENT
    end
  end
  return refusal
end

local now_ms, deadline_ms, tail = 0, 0, ''
if sale then
  now_ms = sale.now_ms
  deadline_ms = now_ms + sale.hold_ms
  tail = string.format('%d', deadline_ms - sale.origin_ms) .. '|'
end

if sale then
  for i = 1, count do
    if not meanings[carts[i]] then read_cart(carts[i]) end
  end
end

-- From here on nothing is read any more, so the events can be written as the orders are decided.
local answers = { sale and sale.wall_ms or 0, deadline_ms }
local made, changed, touched = {}, {}, {}
local records, fifo, events = {}, {}, {}
local taken, prefix = 0, string.format('%d-', now_ms)

for i = 1, count do
  local id, buyer, cart_text = ids[i], buyers[i], carts[i]
  local record = known[i] or made[id]
  local answer
  if record then
    answer = same_order(record, prints[i], cart_text, buyer) and record or STATUS.CONFLICT
  elseif broken then
    answer = broken
  else
    local cart = meanings[cart_text]
    if cart.unknown then
      answer = STATUS.UNKNOWN_SKU
    elseif closed then
      answer = closed
    else
      local purse_text = changed[buyer] or purses[i]
      local refusal, new_purse
      if not purse_text then
        refusal = not_afters[i] < now_ms and STATUS.TOO_LATE or cart.fresh_refusal
        new_purse = cart_text
      else
        local purse, units, lapsed = read_purse(purse_text)
        if sale.max_lapsed > 0 and lapsed >= sale.max_lapsed then
          refusal = STATUS.NOT_ALLOWED
        elseif not_afters[i] < now_ms then
          refusal = STATUS.TOO_LATE
        else
          refusal = limit_refusal(cart.lines, cart.units, purse, units, sku_limits, sale)
        end
        if not refusal then
          for k = 1, #cart.lines, 2 do
            local index = cart.lines[k]
            purse[index] = (purse[index] or 0) + cart.lines[k + 1]
          end
          new_purse = write_purse(purse, lapsed)
        end
      end
      refusal = refusal or stock_refusal(cart.lines)
      if refusal then
        answer = refusal
      else
        local lines = cart.lines
        for k = 1, #lines, 2 do
          local index, quantity = lines[k], lines[k + 1]
          available[index] = available[index] - quantity
          held[index] = held[index] + quantity
          touched[index] = true
        end
        record = 'h1' .. prints[i] .. tail .. cart_text .. '|' .. buyer
        made[id] = record
        changed[buyer] = new_purse
        taken = taken + 1
        fifo[taken] = id
        records[2 * taken - 1], records[2 * taken] = id, record
        events[#events + 1] = id
        events[#events + 1] = 'held||' .. record .. '|' .. attrs[i]
        if #events == 2 * ENTRY_MAX then
          redis.call('XADD', KEYS[7], prefix .. (sale.seq + taken), unpack(events))
          events = {}
        end
        answer = STATUS.CREATED
      end
    end
  end
  answers[i + 2] = answer
end

if closed and sale.jumped then
  pause_for_jump(sale)
elseif taken > 0 then
  sale.seq = sale.seq + taken
  if #events > 0 then redis.call('XADD', KEYS[7], prefix .. sale.seq, unpack(events)) end
  local purse_pairs = {}
  for buyer, purse in pairs(changed) do
    purse_pairs[#purse_pairs + 1] = buyer
    purse_pairs[#purse_pairs + 1] = purse
  end
  for index in pairs(touched) do
    redis.call('HSET', KEYS[2], index .. ':available', available[index], index .. ':held', held[index])
  end
  redis.call('HSET', KEYS[4], unpack(records))
  redis.call('HSET', KEYS[3], unpack(purse_pairs))
  redis.call('RPUSH', KEYS[5], unpack(fifo))
  write_sale(sale)
end
return answers
