--[[
reserve_one: the common pattern, one order a call, as a good engineer of that pattern writes it: the
checks and the writes of reserve.lua for a cart of one SKU, and nothing that serves batches.
`benchmarks/lane.py` and the references run it.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] events
ARGV     [1] order id  [2] buyer  [3] SKU index  [4] quantity  [5] not_after ms  [6] attrs' hash
         [7] attrs
Returns  {1, deadline ms}, {2, record} for an order that exists, or {a refusal}
]]
local id, buyer, sku, attrs_hash = ARGV[1], ARGV[2], ARGV[3], ARGV[6]
local quantity = tonumber(ARGV[4])

local payload = sku .. ':' .. quantity .. '|' .. buyer .. '|' .. attrs_hash
local known = redis.call('HGET', KEYS[4], id)
if known then
  if string.sub(known, -#payload) == payload then return { 2, known } end
  return { 10 }
end

local sale = redis.call('HMGET', KEYS[1], 'state', 'opens_ms', 'ends_ms', 'hold_ms',
  'limit_per_order', 'limit_per_buyer', 'max_lapsed')
if not sale[1] then return { 14 } end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if sale[1] == 'paused' then return { 16 } end
if sale[1] == 'created' or now_ms < tonumber(sale[2]) then return { 17 } end
if sale[1] ~= 'open' or now_ms >= tonumber(sale[3]) then return { 18 } end
if tonumber(ARGV[5]) < now_ms then return { 20 } end

local stock = redis.call('HMGET', KEYS[2], sku .. ':available', sku .. ':limit')
if not stock[1] then return { 15 } end
local purse = redis.call('HMGET', KEYS[3], buyer, buyer .. ':' .. sku, buyer .. '!')
local order_limit, buyer_limit, max_lapsed = tonumber(sale[5]), tonumber(sale[6]), tonumber(sale[7])
local sku_limit, available = tonumber(stock[2]), tonumber(stock[1])
local units, units_of_sku = tonumber(purse[1] or 0), tonumber(purse[2] or 0)
if max_lapsed > 0 and tonumber(purse[3] or 0) >= max_lapsed then return { 19 } end
if order_limit > 0 and quantity > order_limit then return { 21 } end
if sku_limit > 0 and units_of_sku + quantity > sku_limit then return { 22 } end
if buyer_limit > 0 and units + quantity > buyer_limit then return { 23 } end
if available < quantity then return { available <= 0 and 24 or 25 } end

local deadline_ms = now_ms + tonumber(sale[4])
local record = 'h1' .. string.format('%d', deadline_ms) .. '|' .. payload
redis.call('HINCRBY', KEYS[2], sku .. ':available', -quantity)
redis.call('HINCRBY', KEYS[2], sku .. ':held', quantity)
redis.call('HSET', KEYS[3], buyer, units + quantity, buyer .. ':' .. sku, units_of_sku + quantity)
redis.call('HSET', KEYS[4], id, record)
redis.call('RPUSH', KEYS[5], id)
redis.call('XADD', KEYS[6], '*', id, 'held|' .. record .. '|' .. ARGV[7])
return { 1, deadline_ms }
