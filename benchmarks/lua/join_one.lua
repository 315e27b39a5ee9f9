--[[
join_one: the common pattern, one buyer a call, as a good engineer of that pattern writes it: the
checks and the writes of join.lua, and nothing that serves batches, a list that closes or a second
turn. Only `benchmarks/queue.py` runs it.

KEYS     [1] sale  [2] queue  [3] tickets
ARGV     [1] buyer  [2] weight  [3] not_after ms
Returns  {1, number, head}, {2, number, head} for a ticket that exists, or {a refusal}
]]
local buyer, weight = ARGV[1], ARGV[2]

local queue = redis.call('HMGET', KEYS[2], 'joins_ms', 'head')
if not queue[1] then return { 50 } end
local known = redis.call('HGET', KEYS[3], buyer)
if known then return { 2, tonumber(string.match(known, '^%d+')), tonumber(queue[2]) } end

local sale = redis.call('HMGET', KEYS[1], 'state', 'ends_ms')
if not sale[1] then return { 14 } end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if sale[1] == 'closed' or sale[1] == 'settled' or now_ms >= tonumber(sale[2]) then return { 18 } end
if now_ms < tonumber(queue[1]) then return { 17 } end
if tonumber(ARGV[3]) < now_ms then return { 20 } end

local number = redis.call('HINCRBY', KEYS[2], 'next', 1) - 1
redis.call('HSET', KEYS[3], buyer, weight == '1' and number or number .. ':' .. weight)
return { 1, number, tonumber(queue[2]) }
