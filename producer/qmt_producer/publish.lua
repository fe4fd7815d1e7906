-- Publishes one batch of one market exactly once. Data in, nothing decided outside.
-- KEYS: 1 lease, 2 acked, 3 latest, 4 feed, then one tick stream per tick.
-- ARGV: 1 holder, 2 lease ms, 3 ring id, 4 batch number, 5 feed keep ms, 6 future ms,
--       then code, ms, t1 per tick.
-- Returns: state, added, repeated, late, clamped, rejected, Redis ms, first reason of rejection.
local LATE, CLAMPED = 1, 2
local VOLUME = 8            -- t1 positions, counted from 1
local CONTENT = { 1, 2, 8 } -- time, lastPrice, volume: what any terminal reports alike
local BOOK = { 16, 17, 18, 19 }
local LOOK = 64             -- entries compared from either end

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return { 'fenced', 0, 0, 0, 0, 0, 0, '' }
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local acked = tonumber(redis.call('HGET', KEYS[2], ARGV[3]) or '0')
if tonumber(ARGV[4]) <= acked then
  return { 'repeated', 0, 0, 0, 0, 0, now_ms, '' }
end

local count = #KEYS - 4
local codes = {}
for i = 1, count do codes[i] = ARGV[3 * i + 4] end
local stored = redis.call('HMGET', KEYS[3], unpack(codes))

local function id_of(entry) -- entry is msgpack [fixstr id, t1]
  return string.sub(entry, 3, 2 + string.byte(entry, 2) - 0xa0)
end

local function ms_of(id) return tonumber(string.match(id, '^%d+')) end

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

local last = {}   -- code -> {ms, volume of latest} as this batch goes on
local newest = {} -- code -> entry of latest
local order = {}
local feed = {}
local repeated, late, clamped, rejected, reason = 0, 0, 0, 0, ''

for i = 1, count do
  local code, key = codes[i], KEYS[4 + i]
  local ms, t1 = tonumber(ARGV[3 * i + 5]), ARGV[3 * i + 6]
  local flags = string.byte(t1, -1)
  if ms > now_ms + tonumber(ARGV[6]) then
    ms, flags, clamped = now_ms, bit.bor(flags, CLAMPED), clamped + 1
  end

  local tip = last[code]
  if tip == nil then
    local entry = stored[i]
    if entry then
      tip = { ms_of(id_of(entry)), false, entry }
    else
      local tail = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
      if tail.err == nil and tail[1] then tip = { ms_of(tail[1][1]), false, false } end
    end
  end

  local at_ms, behind, known = ms, false, false
  if tip and ms <= tip[1] then
    local tick = cmsgpack.unpack(t1)
    -- Its own ms first, then what was stored after it: a late tick lies behind its time.
    known = seen(redis.call('XRANGE', key, ms, '+', 'COUNT', LOOK), tick)
      or seen(redis.call('XREVRANGE', key, '+', ms, 'COUNT', LOOK), tick)
    if not known and ms == tip[1] and tip[3] then
      -- The same moment again: news, unless its volume went back.
      local held = cmsgpack.unpack(string.sub(tip[3], 3 + string.byte(tip[3], 2) - 0xa0))
      behind = (tick[VOLUME] or 0) < (held[VOLUME] or 0)
    elseif ms < tip[1] then
      behind, at_ms = true, tip[1]
    end
    if behind and not known then flags, late = bit.bor(flags, LATE), late + 1 end
  end

  if known then
    repeated = repeated + 1
  else
    if flags ~= string.byte(t1, -1) then t1 = string.sub(t1, 1, -2) .. string.char(flags) end
    local id = redis.pcall('XADD', key, string.format('%.0f-*', at_ms), 't1', t1)
    if type(id) == 'table' then
      if string.sub(id.err, 1, 3) == 'OOM' or string.sub(id.err, 1, 7) == 'MISCONF' then
        return redis.error_reply(id.err) -- nothing acknowledged: the batch comes again
      end
      rejected, reason = rejected + 1, code .. ': ' .. id.err
    else
      local entry = string.char(0x92, 0xa0 + #id) .. id .. t1
      feed[#feed + 1] = string.char(0x93, 0xa0 + #code) .. code .. string.char(0xa0 + #id) .. id .. t1
      if behind then
        last[code] = { at_ms, false, tip[3] }
      else
        if newest[code] == nil then order[#order + 1] = code end
        newest[code] = entry
        last[code] = { at_ms, false, entry }
      end
    end
  end
end

if #order > 0 then
  local pairs_ = {}
  for i, code in ipairs(order) do
    pairs_[2 * i - 1], pairs_[2 * i] = code, newest[code]
  end
  redis.call('HSET', KEYS[3], unpack(pairs_))
end
if #feed > 0 then
  local head = #feed < 16 and string.char(0x90 + #feed)
    or string.char(0xdc, math.floor(#feed / 256), #feed % 256)
  redis.call('XADD', KEYS[4], 'MINID', '~', string.format('%.0f', now_ms - ARGV[5]), '*',
    'b1', head .. table.concat(feed))
end
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
return { 'applied', #feed, repeated, late, clamped, rejected, now_ms, reason }
