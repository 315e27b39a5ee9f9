-- The sale's header: read once at the top of every verb, its seq and clock written once at the end.

local FORMAT = 1

-- What every call says first (ARGV[1], `caller`), with spaces between: the script format; the name of the
-- server (empty: it does not tell), or as long as the caller knows no more, the run_id that its connection
-- learned; the highest seq of this sale that the caller's engine was ever told; and the name of who told it,
-- if that was another server. The format alone asks nothing of the server.
-- A server's name is "<run_id>.<ms of when it was trusted with the sale>", 0 for who it was made on: one that
-- is trusted for a second time, without a restart in between, has another name then. Empty for one that
-- tells no run_id.
-- Returns the four, '' and 0 for what is not said, or nil first for words of another format.
local function read_caller(caller)
  local format, server, known_seq, teller = string.match(caller, '^(%d+) ?(%S*) ?(%d*)$')
  if not format then format, server, known_seq, teller = string.match(caller, '^(%d+) (%S+) (%d+) (%S+)$') end
  return tonumber(format), server or '', tonumber(known_seq) or 0, teller or ''
end

-- The run_id in a server's name, and since when it is trusted.
local function read_server(name)
  local run_id, since_ms = string.match(name, '^(.*)%.(%d+)$')
  return run_id or name, tonumber(since_ms) or 0
end

local function name_server(run_id, since_ms)
  return run_id ~= '' and string.format('%s.%d', run_id, since_ms) or ''
end

-- How far that server's part of the sale's history is here, nil for a server that is not known to have had
-- one; and the same of the last before this one. `servers` are those that were trusted with the sale, one
-- after the other, each with the seq at which the next took over. Who knew no name has told of a run_id.
local function kept_of(teller, servers)
  local kept, last = nil, 0
  for name, until_seq in string.gmatch(servers, '(%S+):(%d+)') do
    last = tonumber(until_seq)
    if name == teller or read_server(name) == teller then kept = last end
  end
  return kept, last
end

-- Nothing may raise after the first write. So whoever damaged a key learns it here, and every verb's
-- first write is its event: an entry id that is too small would be refused before anything changed.
local function check_keys()
  redis.call('HLEN', KEYS[2])
  redis.call('HLEN', KEYS[3])
  redis.call('HLEN', KEYS[4])
  redis.call('LLEN', KEYS[5])
  redis.call('LLEN', KEYS[6])
  redis.call('XLEN', KEYS[7])
end

-- Returns the header as a table, or nil and the refusal that no verb gets past. A sale of which this
-- server has lost something is fenced (fence.lua). One that this server has not been trusted with yet,
-- because it has restarted or another one has taken its place, or that lacks something the caller was
-- told, waits for a roll call (roll_call.lua). Either is only looked at (`looks`).
local function read_sale(caller, looks)
  local h = redis.call('HMGET', KEYS[1], 'format', 'state', 'seq', 'last_ms', 'origin_ms',
    'opens_ms', 'ends_ms', 'hold_ms', 'pay_ms', 'limit_per_order', 'limit_per_buyer', 'max_lapsed',
    'clock_jump_ms', 'definition_id', 'reason', 'spared_ms', 'queue', 'server', 'passed_ms')
  local format, server, known_seq, teller = read_caller(caller)
  if not h[1] then
    return nil, known_seq > 0 and not looks and STATUS.NEW_SERVER or STATUS.UNKNOWN_SALE
  end
  if tonumber(h[1]) ~= FORMAT or format ~= FORMAT then return nil, STATUS.UPGRADE_NEEDED end
  local seq = tonumber(h[3])
  if not looks then
    if h[2] == 'fenced' then return nil, STATUS.FENCED end
    if known_seq > seq then return nil, STATUS.NEW_SERVER end
    -- Whoever was told something must also know under which name.
    if server ~= '' and server ~= h[18] and (known_seq > 0 or server ~= read_server(h[18] or '')) then
      return nil, STATUS.NEW_SERVER
    end
    if teller ~= '' then
      local kept, last = kept_of(teller, redis.call('HGET', KEYS[1], 'servers') or '')
      if known_seq > (kept or last) then return nil, STATUS.NEW_SERVER end
    end
  end
  return {
    state = h[2], seq = seq, last_ms = tonumber(h[4]), origin_ms = tonumber(h[5]),
    opens_ms = tonumber(h[6]), ends_ms = tonumber(h[7]), hold_ms = tonumber(h[8]),
    pay_ms = tonumber(h[9]), limit_per_order = tonumber(h[10]), limit_per_buyer = tonumber(h[11]),
    max_lapsed = tonumber(h[12]), clock_jump_ms = tonumber(h[13]), definition_id = h[14],
    reason = h[15] or '', spared_ms = tonumber(h[16]) or 0, has_queue = h[17] ~= false,
    passed_ms = tonumber(h[19]) or 0,
  }
end

-- When an order lapses: at its deadline, but not before spared_ms. While the sale was lost nobody
-- could pay; rebuild_found.lua gives everybody that time back. Keeps the queues in order.
local function due_ms(sale, order)
  return math.max(sale.origin_ms + order.deadline, sale.spared_ms)
end

-- Units held over all SKUs. Only read on rare paths: a jump of the clock, a closed sale.
local function units_held()
  local fields, held = redis.call('HGETALL', KEYS[2]), 0
  for i = 1, #fields, 2 do
    if string.sub(fields[i], -5) == ':held' then held = held + tonumber(fields[i + 1]) end
  end
  return held
end

-- Sets sale.now_ms: Redis TIME, never before the last time this sale has seen. A step forward of
-- more than clock_jump_ms while units are held sets sale.jumped instead and keeps the old time, so
-- that a wrong clock (or a long outage) cannot expire every hold at once. sale.raw_ms is TIME itself, and
-- sale.patience_ms the clock that callers' not_after is measured by: see let_pass.
local function read_clock(sale)
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  sale.raw_ms, sale.patience_ms = now_ms, math.max(now_ms, sale.passed_ms)
  if now_ms < sale.last_ms then now_ms = sale.last_ms end
  sale.wall_ms = now_ms
  if sale.last_ms > 0 and now_ms - sale.last_ms > sale.clock_jump_ms and units_held() > 0 then
    sale.jumped = true
    now_ms = sale.last_ms
  end
  sale.now_ms = now_ms
end

-- Appends one event under a field that names its subject: an order id, or "sale". The entry's id is
-- "<sale time>-<seq>": seq is dense and costs no field.
local function emit(sale, subject, text)
  sale.seq = sale.seq + 1
  redis.call('XADD', KEYS[7], sale.now_ms .. '-' .. sale.seq, subject, text)
end

-- Whether a server at maxmemory lets a script write is decided by the script's first write. HDEL is
-- always allowed, so verbs that free units and take money begin with one that does nothing.
local function write_even_when_full()
  redis.call('HDEL', KEYS[1], '-')
end

-- Patience's clock is TIME, and never before what anybody relied on: when somebody was told that there
-- is no such order, or an engine said what it had seen, the moment is kept in passed_ms. So a call whose
-- caller has given up does not become young again when the server's clock is set back.
local function let_pass(raw_ms, kept_ms, passed_ms)
  passed_ms = math.max(raw_ms, passed_ms)
  if passed_ms <= kept_ms then return end
  write_even_when_full()
  redis.call('HSET', KEYS[1], 'passed_ms', string.format('%d', passed_ms))
end

-- Ends every verb that has emitted.
local function write_sale(sale)
  redis.call('HSET', KEYS[1], 'seq', sale.seq, 'last_ms', sale.now_ms)
end

-- Stops new orders because the clock jumped. Only a human knows whether the holds should lapse.
local function pause_for_jump(sale)
  if sale.state ~= 'open' then return end
  sale.state = 'paused'
  emit(sale, 'sale', 'paused|clock_jump')
  redis.call('HSET', KEYS[1], 'state', 'paused', 'reason', 'clock_jump')
  write_sale(sale)
end

-- A closed sale is settled once nothing is held any more: what is left is unsold for good.
local function settle_if_done(sale)
  if sale.state ~= 'closed' or units_held() > 0 then return end
  sale.state = 'settled'
  redis.call('HSET', KEYS[1], 'state', 'settled')
  local unsold, index = {}, 0
  while true do
    local available = redis.call('HGET', KEYS[2], index .. ':available')
    if not available then break end
    if tonumber(available) > 0 then unsold[#unsold + 1] = index .. ':' .. available end
    index = index + 1
  end
  emit(sale, 'sale', 'settled|' .. table.concat(unsold, ','))
end
