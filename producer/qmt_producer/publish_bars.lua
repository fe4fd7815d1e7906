-- Publishes one batch of one market's bars exactly once. ARGV per entry: code, period, label ms, k1.
-- An entry's id is its label. Within one label: the same bytes as one of the last entries, a
-- forming bar behind a closed one, and a forming bar whose volume went back are older states and
-- are dropped as repeats; a closed bar unlike the closed ones before it is a correction and is
-- added. A bar whose label lies before the stream's last is late: dropped, and named in `words`.
-- In place of its label a bar may have its whole id, as a replay's have.
local VOLUME, CLOSED = 6, 12 -- k1 positions, counted from 1
local LOOK = 64
local NAMED = 20

local function is_number(value) return type(value) == 'number' and value or 0 end

local function older(key, label, k1) -- than what is stored under the same label
  local entries = redis.call('XREVRANGE', key, label, label, 'COUNT', LOOK)
  if not entries[1] then return false end
  for _, entry in ipairs(entries) do
    if entry[2][2] == k1 then return true end
  end
  local held, new = cmsgpack.unpack(entries[1][2][2]), cmsgpack.unpack(k1)
  if new[CLOSED] then return false end
  return held[CLOSED] or is_number(new[VOLUME]) < is_number(held[VOLUME])
end

local function say(what)
  if late + rejected <= NAMED then words = words .. (words == '' and '' or '; ') .. what end
end

for i = 1, count do
  local key, at = KEYS[4 + i], 4 * i + 3
  local code, period, label, k1 = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local label_ms, filed = ms_of(label), tonumber(label) == nil
  local tail = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
  local last_ms = tail.err == nil and tail[1] and ms_of(tail[1][1]) or -1
  if label_ms <= last_ms and older(key, label_ms, k1) then
    repeated = repeated + 1
  elseif label_ms < last_ms then
    late = late + 1
    say(period .. '|' .. code .. ' ' .. label)
  else
    local id = redis.pcall('XADD', key, filed and label or label .. '-*', 'k1', k1)
    if type(id) == 'table' then
      rejected = rejected + 1
      say(period .. '|' .. code .. ': ' .. id.err)
    else
      added = added + 1
      feed[added] = '\148' .. HEAD[#code] .. code .. HEAD[#period] .. period .. HEAD[#id] .. id .. k1
    end
  end
end
return finish('c1')
