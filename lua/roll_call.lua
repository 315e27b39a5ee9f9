--[[
roll_call: who has which part of a sale's history, so that a server is trusted with the sale only if it
has all that anybody was told. Every engine that takes orders answers it about once a second: those are
the crew. After a restart or a failover the crew answers again, and says how far each was told: the
claims. A claim that goes further than this server fences the sale at once, whenever it comes. Else the
server is trusted when all of the crew have claimed, or after a while, when who has not is taken for
dead. Who comes later is believed all the same, whatever was sold since: each says which server told it,
and the header has the servers that were trusted before, with how far this one has what they did.
Works at maxmemory.

KEYS     [1] sale  [2] stock  [3] buyers  [4] orders  [5] holds  [6] paying  [7] events  [8] crew
         [9] removed: made of the sale that was removed last under this id (seckill/ledger/remove.py)
ARGV     [1] caller  [2] engine id, 16 hex digits  [3] made, as it was told, empty for not at all
         [4] the highest seq that it was told, or that its ledger has  [5] how long claims are waited for
         ms, of which a quarter counts at most between two calls  [6] who is silent for so many ms is of
         the crew no more  [7] 'engine', or 'ledger' for who speaks for the ledger  [8] 1 if the sale has a
         ledger that must claim  [9] the highest beat that it was told, 0 for none  [10] what the engine has seen of
         patience's clock, ms (lib/sale)  [11] name of the server (lib/sale) that told that seq, empty: nobody knows
Returns  {status, seq, made, beat, why, server}: seq, made, beat and the name of this server are what the
         caller is told hereby, with DONE alone; why is the reason of a fenced sale, or what is waited for
Events   none

Without a run_id in [1] every server is the one that was trusted, and the claim alone is looked at.

Answers: UPGRADE_NEEDED, UNKNOWN_SALE, FENCED (by this call or before), NEW_SERVER (it is not trusted
yet, call again soon; or the sale is missing, of which the caller was told), DONE (it is trusted).
]]
--@include "lib/status"
--@include "lib/sale"
--@include "lib/fence"
local caller, engine, told_made, told_seq = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local wait_ms, lapse_ms, is_ledger = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == 'ledger'
local needs_ledger, told_beat, passed_ms = ARGV[8] == '1', tonumber(ARGV[9]), tonumber(ARGV[10])
local teller = ARGV[11]

local format, run_id = read_caller(caller)
run_id = read_server(run_id)
local h = redis.call('HMGET', KEYS[1], 'format', 'state', 'seq', 'made', 'server', 'reason', 'passed_ms',
  'servers', 'founded_seq')
local fields, removed = redis.call('HGETALL', KEYS[8]), redis.call('GET', KEYS[9])
if format ~= FORMAT or (h[1] and tonumber(h[1]) ~= FORMAT) then
  return { STATUS.UPGRADE_NEEDED, 0, '', 0, '', '' }
end
if not h[1] then
  local is_missed = told_seq > 0 and (told_made == '' or told_made ~= removed)
  return { is_missed and STATUS.NEW_SERVER or STATUS.UNKNOWN_SALE, 0, '', 0, 'the sale is not there', '' }
end
local seq, made, server, servers = tonumber(h[3]), h[4] or '', h[5] or '', h[8] or ''
local trusted_run_id, trusted_ms = read_server(server)
local is_new = run_id ~= '' and run_id ~= trusted_run_id
if h[2] == 'fenced' then return { STATUS.FENCED, 0, '', 0, h[6] or '', '' } end

-- Whether another sale under this id, of which somebody was told, is gone for good, and this one has its
-- place by right: a rebuild came after that event, or the sale was removed, or this one was made later on the
-- very server that told of it. Else that server was wiped, or is an old one. made is "<run_id of its
-- server>:<ms of its making>".
local function is_gone()
  if removed == told_made then return true end
  local made_by, made_ms = string.match(made, '^(.*):(%d+)$')
  local told_made_ms, founded_seq = string.match(told_made, '%d+$'), tonumber(h[9])
  if not made_ms or not told_made_ms then return false end
  local is_later = tonumber(told_made_ms) < tonumber(made_ms)
  if founded_seq then return is_later and told_seq < founded_seq end
  if teller == '' or teller == server then return not is_new or is_later end
  return read_server(teller) == made_by and is_later
end

if told_made ~= '' and told_made ~= made then
  if is_gone() then
    told_made, told_seq, told_beat = made, 0, 0
  elseif h[9] and told_seq >= tonumber(h[9]) then
    told_made = made -- Its events are past all that were told of the one before: it is this one that is meant.
  end
end

local why
if told_made ~= '' and told_made ~= made then
  why = 'made anew: this is not the sale that is known under its id'
elseif told_seq > seq then
  why = string.format('behind: this server ends at event %d, events up to %d are known', seq, told_seq)
elseif teller ~= '' and teller ~= server and teller ~= trusted_run_id then
  -- What one did that nobody here knows can't be judged any better than if it had come to this roll call,
  -- or to the last.
  local kept, last = kept_of(teller, servers)
  kept = kept or (is_new and seq or last)
  if told_seq > kept then
    why = string.format('behind: of what a server before this one did, events up to %d are here, events up to '
      .. '%d are known', kept, told_seq)
  end
end
if why then
  write_even_when_full()
  fence_sale(h[2], why)
  return { STATUS.FENCED, 0, '', 0, why, '' }
end

-- The crew's fields: engine id → when it was last seen, ms; and those with a "_" or ":" in their names:
--   last_beat         counts the calls: who was told a higher one knows that some are lost here
--   claims_of         the run_id for which claims are gathered; while none are, these are not there:
--   claims_waited_ms  for how long, counted in small steps: a clock that is set forward must not end it
--                     early, nor one that is set back make it last
--   claims_seen_ms    TIME at the last step
--   claims_behind     1 if somebody was told a higher beat: this crew is that of an earlier time
--   claims_vouched    1 if an engine has claimed that was told something of this very sale
--   claims_ledger     1 if the ledger has to claim
--   claim:<engine>    how far it was told; claim:ledger for the ledger
local crew, claims, state, round = {}, {}, {}, {}
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if string.find(name, '^claim') then round[#round + 1] = name end
  if string.find(name, '^claim:') then
    claims[string.sub(name, 7)] = true
  elseif string.find(name, '_', 1, true) then
    state[name] = value
  else
    crew[name] = tonumber(value)
  end
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local last_beat = tonumber(state.last_beat) or 0
local beat = math.max(last_beat, told_beat)
local put, gone = {}, {}

local function note(name, value)
  put[#put + 1], put[#put + 2] = name, value
end

local function write_crew()
  write_even_when_full()
  for _, name in ipairs(gone) do redis.call('HDEL', KEYS[8], name) end
  for i = 1, #put, 2 do redis.call('HSET', KEYS[8], put[i], put[i + 1]) end
  -- Only where the clock was set back; else find.lua keeps what somebody relied on.
  if passed_ms > now_ms then let_pass(now_ms, tonumber(h[7]) or 0, passed_ms) end
end

if not is_new then
  -- Who speaks for the ledger is told nothing that the ledger has not, and need not be missed.
  if is_ledger then return { STATUS.DONE, seq, made, beat, '', server } end
  beat = beat + 1
  note('last_beat', beat)
  crew[engine] = nil
  note(engine, now_ms)
  for member, seen_ms in pairs(crew) do
    if seen_ms > now_ms then
      -- The clock was set back since. Whoever was seen by it as it was must not stay for as long.
      note(member, now_ms)
    elseif now_ms - seen_ms > lapse_ms then
      gone[#gone + 1] = member
    end
  end
  for _, name in ipairs(round) do gone[#gone + 1] = name end
  write_crew()
  return { STATUS.DONE, seq, made, beat, '', server }
end

if state.claims_of ~= run_id then
  gone, round, claims, state = round, {}, {}, {}
  note('claims_of', run_id)
end
claims[is_ledger and 'ledger' or engine] = true
note('claim:' .. (is_ledger and 'ledger' or engine), told_seq)
local passed_ms = now_ms - (tonumber(state.claims_seen_ms) or now_ms)
local waited_ms = (tonumber(state.claims_waited_ms) or 0)
  + math.floor(math.max(0, math.min(passed_ms, wait_ms / 4)))
note('claims_seen_ms', now_ms)
note('claims_waited_ms', waited_ms)
local is_behind = state.claims_behind or told_beat > last_beat
if is_behind then note('claims_behind', 1) end
local is_vouched = state.claims_vouched or (not is_ledger and told_seq > 0 and told_made ~= '')
if is_vouched then note('claims_vouched', 1) end
local ledger_misses = (state.claims_ledger or needs_ledger) and not claims.ledger
if needs_ledger then note('claims_ledger', 1) end

local members, missing = 0, 0
for member in pairs(crew) do
  members = members + 1
  if not claims[member] then missing = missing + 1 end
end
-- Of a crew without members, and of one of an earlier time, nobody knows who is missing.
local is_complete = members > 0 and missing == 0 and not is_behind and not ledger_misses
local is_over = waited_ms >= wait_ms and (is_vouched or not ledger_misses)
if not is_complete and not is_over then
  write_crew()
  why = string.format('%d of %d engines have answered', members - missing, members)
  if ledger_misses then why = why .. ', and the ledger has not' end
  return { STATUS.NEW_SERVER, 0, '', 0, why, '' }
end

-- The new crew is who has claimed, and who has not is taken for dead.
for member in pairs(crew) do gone[#gone + 1] = member end
for _, name in ipairs(round) do gone[#gone + 1] = name end
beat, put = beat + 1, {}
note('last_beat', beat)
for claimant in pairs(claims) do
  if claimant ~= 'ledger' then note(claimant, now_ms) end
end
write_crew()
-- So many servers one after the other, and nobody who was told by the first of them: they may go.
local SERVERS_MAX = 16
local trusted = {}
for one in string.gmatch(servers, '%S+') do trusted[#trusted + 1] = one end
if server ~= '' then trusted[#trusted + 1] = string.format('%s:%d', server, seq) end
server = name_server(run_id, math.max(now_ms, trusted_ms + 1))
servers = table.concat(trusted, ' ', math.max(1, #trusted - SERVERS_MAX + 1))
redis.call('HSET', KEYS[1], 'server', server, 'servers', servers)
return { STATUS.DONE, seq, made, beat, '', server }
