-- Publishes one batch of one market's ticks exactly once. ARGV per entry: code, ms, t1.
-- A tick newer than all of its stream costs one XADD, which finds that out by itself: it refuses
-- the id `ms-0` at or behind the stream's last. What is stored is read only then, and where there
-- is no stream. In place of its ms a tick may have its whole id, as a replay's have: it was judged
-- when it was first published, and is filed again as it was.
local LATE, CLAMPED = 1, 2
local VOLUME = 8            -- t1 positions, counted from 1
local CONTENT = { 1, 2, 8 } -- time, lastPrice, volume: what any terminal reports alike
local BOOK = { 16, 17, 18, 19 }
local LOOK = 64             -- entries compared from either end

local function first(list) return type(list) == 'table' and list[1] or nil end

local function same(a, b)
  for _, at in ipairs(CONTENT) do
    if a[at] ~= b[at] then return false end
  end
  for _, at in ipairs(BOOK) do
    if first(a[at]) ~= first(b[at]) then return false end
  end
  return true
end

local function seen(entries, tick)
  for _, entry in ipairs(entries) do
    if same(cmsgpack.unpack(entry[2][2]), tick) then return true end
  end
  return false
end

local latest, slots, place = {}, 0, {} -- code, entry, code, entry ... and where a code's is

local function latest_of(code) -- ms and tick
  local entry = place[code] and latest[place[code]] or redis.call('HGET', KEYS[3], code)
  if not entry then return end
  local head = string.byte(entry, 2) - 0xa0 -- msgpack [fixstr id, t1]
  return ms_of(string.sub(entry, 3, 2 + head)), cmsgpack.unpack(string.sub(entry, 3 + head))
end

local pieces = 0
local function tell(code, id, t1, behind)
  local head = HEAD[#id]
  feed[pieces + 1], feed[pieces + 2], feed[pieces + 3] = '\147', HEAD[#code], code
  feed[pieces + 4], feed[pieces + 5], feed[pieces + 6] = head, id, t1
  pieces, added = pieces + 6, added + 1
  if behind then return end
  local at = place[code]
  if not at then
    at = slots + 2
    latest[slots + 1], place[code], slots = code, at, at
  end
  latest[at] = '\146' .. head .. id .. t1
end

local function reject(code, err)
  if rejected == 0 then words = code .. ': ' .. err end
  rejected = rejected + 1
end

-- Compares with what is stored: a repeat is dropped, a tick behind the stream's last is filed at
-- that one's ms.
local function settle(code, key, ms, t1, flags)
  local tail = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
  if tail.err then return reject(code, tail.err) end
  local tip_ms, held = latest_of(code)
  local tail_ms = tail[1] and ms_of(tail[1][1])
  if tail_ms and tail_ms > (tip_ms or 0) then tip_ms, held = tail_ms, nil end

  local behind = false
  if tip_ms and ms <= tip_ms then
    local tick = cmsgpack.unpack(t1)
    -- The latest first: it outlives its stream, which may have been trimmed. Then the tick's own
    -- ms, then what was stored after it: a late tick lies behind its time.
    if held and same(held, tick)
      or seen(redis.call('XRANGE', key, ms, '+', 'COUNT', LOOK), tick)
      or seen(redis.call('XREVRANGE', key, '+', ms, 'COUNT', LOOK), tick) then
      repeated = repeated + 1
      return
    end
    if ms == tip_ms then -- the same moment again: news, unless its volume went back
      behind = held and (tick[VOLUME] or 0) < (held[VOLUME] or 0)
    else
      behind, ms = true, tip_ms
    end
  end
  if behind then flags, late = bit.bor(flags, LATE), late + 1 end
  if flags ~= string.byte(t1, -1) then t1 = string.sub(t1, 1, -2) .. string.char(flags) end
  local id = redis.pcall('XADD', key, string.format('%.0f-*', ms), 't1', t1)
  if type(id) == 'table' then return reject(code, id.err) end
  tell(code, id, t1, behind)
end

-- Files a tick under the id, and as late, as it was.
local function again(code, key, id, t1)
  local behind = bit.band(string.byte(t1, -1), LATE) ~= 0
  local done = redis.pcall('XADD', key, id, 't1', t1)
  if type(done) == 'table' then
    if #redis.call('XRANGE', key, id, id) == 0 then return reject(code, done.err) end
    repeated = repeated + 1
    return
  end
  if behind then late = late + 1 end
  tell(code, id, t1, behind)
end

local pcall, last_ms = redis.pcall, now_ms + tonumber(ARGV[6])
for i = 1, count do
  local at = 3 * i + 4
  local code, key, ms, t1 = ARGV[at], KEYS[4 + i], ARGV[at + 1], ARGV[at + 2]
  local number = tonumber(ms)
  if not number then
    again(code, key, ms, t1)
  elseif number > last_ms then
    clamped = clamped + 1
    settle(code, key, now_ms, t1, bit.bor(string.byte(t1, -1), CLAMPED))
  else
    local id = ms .. '-0'
    local done = pcall('XADD', key, 'NOMKSTREAM', id, 't1', t1)
    if type(done) == 'string' then
      tell(code, id, t1, false)
    else
      settle(code, key, number, t1, string.byte(t1, -1))
    end
  end
end
if slots > 0 then redis.call('HSET', KEYS[3], unpack(latest)) end
return finish('b1')
