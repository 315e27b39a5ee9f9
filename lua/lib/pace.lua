-- How many buyers may be called next: plain arithmetic that knows nothing of Redis, because `seckill
-- rehearse` runs it, too.
--
-- A token lives for life_ms. How many of those who were called come to buy, and when in that life, is
-- learned from the sale itself, as one learns of lifetimes: the life is cut into ten ages, and for
-- each is counted how many tokens reached it unused (pace.risk) and how many were used in it
-- (pace.used). An age that nobody has reached yet counts as if one in ten used it: so nobody is
-- taken for absent before having had the time to come.
--
--   pace   {each (units that one buyer may take, for a draw; else 1), life_ms, rate_per_s (0: no
--           bound), overbook_max, used {1…10}, risk {1…10}, users, units (first orders, and their
--           units), credit (tokens the rate allows by now), paced_ms, lapsed (a token has: true or
--           false)}
--   steps  live steps, oldest first: {at_ms, unused, age (1…10)}
local AGES = 10
local PRIOR_TOKENS, PRIOR_USED = 2, 0.1
local MARGIN = 3
local STEP_MS, STEPS_MAX = 200, 256

-- Units that one who comes takes.
local function units_a_user(pace)
  return (pace.units + 1) / (pace.users + 1)
end

-- Notes that `count` tokens of a step were used since the last look.
local function use_tokens(pace, step, count)
  count = math.min(count, step.unused)
  step.unused = step.unused - count
  pace.used[step.age] = pace.used[step.age] + count
end

-- Moves a step to its age at now_ms. Returns false when its tokens have lapsed.
local function age_step(pace, step, now_ms)
  local age = math.floor((now_ms - step.at_ms) * AGES / pace.life_ms) + 1
  while step.age < math.min(age, AGES) do
    step.age = step.age + 1
    pace.risk[step.age] = pace.risk[step.age] + step.unused
  end
  pace.lapsed = pace.lapsed or age > AGES
  return age <= AGES
end

-- What is to be reckoned with: `live` tokens that nobody has used, the units that they will take if it
-- goes on as it went (`expected`), those that one more would take (`a_token`), and the chance of a token
-- that reaches each age to be used before it lapses (`chances`; [11] is 0).
local function outlook(pace, steps, now_ms)
  local all, past, chances = {}, {}, { [AGES + 1] = 0 }
  local live, users = 0, 0
  for age = 1, AGES do all[age], past[age] = 0, 0 end
  for _, step in ipairs(steps) do
    -- Whoever is in the middle of an age has had only a part of it to come.
    local part = math.max(0, math.min(1, (now_ms - step.at_ms) * AGES / pace.life_ms + 1 - step.age))
    all[step.age] = all[step.age] + step.unused
    past[step.age] = past[step.age] + step.unused * part
  end
  for age = AGES, 1, -1 do
    local yet = all[age] - past[age]
    local risk = math.max(pace.used[age], pace.risk[age] - yet)
    local hazard = (pace.used[age] + PRIOR_TOKENS * PRIOR_USED) / (risk + PRIOR_TOKENS)
    chances[age] = 1 - (1 - math.min(hazard, 1)) * (1 - chances[age + 1])
    live = live + all[age]
    users = users + chances[age] * yet + chances[age + 1] * past[age]
  end
  local units = units_a_user(pace)
  return { live = live, expected = users * units, a_token = chances[1] * units, chances = chances }
end

-- Between two steps pass at least so many ms, so that never more than STEPS_MAX are live.
local function pause_ms_of(pace)
  return math.max(STEP_MS, pace.life_ms / STEPS_MAX)
end

-- How many tokens the rate allows by now_ms. At most a second's worth is saved up, or, where lives are
-- so long that steps are far apart, what comes together until the next but one.
local function credit_at(pace, now_ms)
  if pace.rate_per_s == 0 then return math.huge end
  local earned = pace.rate_per_s * math.max(0, now_ms - pace.paced_ms) / 1000
  local saved_max = pace.rate_per_s * math.max(1000, 2 * pause_ms_of(pace)) / 1000
  return math.min(pace.credit + earned, math.max(1, saved_max))
end

-- How many live tokens the sale has to reckon with. Each counts by the chance it has left, as against
-- a new one: those who would have come long since must not keep others from being called. Where nobody
-- is called for a unit that somebody else may still take, each live token counts.
local function counted_live(pace, ahead)
  return pace.overbook_max == 1 and ahead.live or ahead.expected / ahead.a_token
end

-- How many units buyers are called for, where `units` are left. Who comes is luck, and the last unit would
-- have to wait for it. So once tokens have lapsed, and fewer than half of the called come, it is a few
-- more than are left.
local function aim_of(pace, ahead, units)
  if not pace.lapsed then return units end
  return units + MARGIN * math.sqrt(units * math.max(0, units_a_user(pace) - 2 * ahead.a_token))
end

-- How many may be called now for the stock's sake. The sale never reckons with more live unused tokens
-- than overbook_max for each available unit, and somebody is called as soon as nobody else could buy.
local function room_of(pace, ahead, available)
  if available <= 0 then return 0 end
  local count = math.floor((aim_of(pace, ahead, available) - ahead.expected) / ahead.a_token)
  if ahead.live == 0 then count = math.max(count, 1) end
  local servable = math.max(math.floor(available / (pace.each or 1)), ahead.live == 0 and 1 or 0)
  local room = servable * pace.overbook_max - counted_live(pace, ahead)
  return math.max(0, math.floor(math.min(count, room)))
end

-- How many of those who wait are called now.
local function call_count(pace, ahead, now_ms, available, waiting)
  return math.floor(math.min(room_of(pace, ahead, available), waiting, credit_at(pace, now_ms)))
end

-- Opens a step for `count` tokens. Its `from` and `to` are the caller's to note.
local function take_step(pace, steps, ahead, now_ms, count)
  pace.credit = pace.rate_per_s == 0 and 0 or credit_at(pace, now_ms) - count
  pace.paced_ms = now_ms
  pace.risk[1] = pace.risk[1] + count
  ahead.live, ahead.expected = ahead.live + count, ahead.expected + count * ahead.a_token
  local step = { at_ms = now_ms, unused = count, age = 1 }
  steps[#steps + 1] = step
  return step
end

-- How many more may be called before the stock is gone, if every held unit came back: whoever stands
-- further back is told that it is unlikely. Before a token has reached its last age, at best.
local function reach_count(pace, ahead, units)
  if pace.risk[AGES] == 0 or pace.overbook_max == 1 then
    return math.max(0, math.ceil(units / (pace.each or 1)) * pace.overbook_max - ahead.live)
  end
  return math.max(0, math.ceil((aim_of(pace, ahead, units) - ahead.expected) / ahead.a_token))
end
