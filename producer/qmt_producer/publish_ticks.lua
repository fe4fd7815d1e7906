-- Publishes one batch of one market's ticks exactly once. ARGV per entry: code, ms, t1.
local LATE, CLAMPED = 1, 2
local VOLUME = 8            -- t1 positions, counted from 1
local CONTENT = { 1, 2, 8 } -- time, lastPrice, volume: what any terminal reports alike
local BOOK = { 16, 17, 18, 19 }
local LOOK = 64             -- entries compared from either end

local codes = {}
for i = 1, count do codes[i] = ARGV[3 * i + 4] end
local stored = redis.call('HMGET', KEYS[3], unpack(codes))

local function id_of(entry) -- entry is msgpack [fixstr id, t1]
  return string.sub(entry, 3, 2 + string.byte(entry, 2) - 0xa0)
end

local function tick_of(entry)
  return cmsgpack.unpack(string.sub(entry, 3 + string.byte(entry, 2) - 0xa0))
end

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

local last = {}   -- code -> {ms, entry of latest or false} as this batch goes on
local newest = {} -- code -> entry of latest
local order = {}

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
      tip = { ms_of(id_of(entry)), entry }
    else
      local tail = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
      if tail.err == nil and tail[1] then tip = { ms_of(tail[1][1]), false } end
    end
  end

  local at_ms, behind, known = ms, false, false
  if tip and ms <= tip[1] then
    local tick = cmsgpack.unpack(t1)
    local held = tip[2] and tick_of(tip[2])
    -- The latest first: it outlives its stream, which may have been trimmed. Then the tick's own
    -- ms, then what was stored after it: a late tick lies behind its time.
    known = (held and same(held, tick))
      or seen(redis.call('XRANGE', key, ms, '+', 'COUNT', LOOK), tick)
      or seen(redis.call('XREVRANGE', key, '+', ms, 'COUNT', LOOK), tick)
    if not known and ms == tip[1] and held then
      -- The same moment again: news, unless its volume went back.
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
      if rejected == 0 then words = code .. ': ' .. id.err end
      rejected = rejected + 1
    else
      local entry = string.char(0x92) .. text(id) .. t1
      feed[#feed + 1] = string.char(0x93) .. text(code) .. text(id) .. t1
      if behind then
        last[code] = { at_ms, tip[2] }
      else
        if newest[code] == nil then order[#order + 1] = code end
        newest[code] = entry
        last[code] = { at_ms, entry }
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
return finish('b1')
