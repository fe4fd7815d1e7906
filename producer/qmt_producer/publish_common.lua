#!lua
-- What both publishing scripts begin with; Redis gets it in front of each. The line above makes
-- Redis look before the first write: out of memory, read-only or without its disk it refuses the
-- whole call, where it would otherwise let everything pass once the lease has been renewed.
-- KEYS: 1 lease, 2 acked, 3 latest, 4 feed, then one stream per entry.
-- ARGV: 1 holder, 2 lease ms, 3 ring id, 4 batch number, 5 feed keep ms, 6 future ms, then what
--       each script says per entry; last: the batch number that Redis acknowledged before.
-- Returns: state, added, repeated, late, clamped, rejected, Redis ms, words on the last two.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return { 'fenced', 0, 0, 0, 0, 0, 0, '' }
end
local acked = tonumber(redis.call('HGET', KEYS[2], ARGV[3]) or '0')
if acked < tonumber(ARGV[#ARGV]) then -- an older copy of Redis is back under a lease still good
  return { 'lost', 0, 0, 0, 0, 0, 0, '' }
end
redis.call('XLEN', KEYS[4]) -- a feed of another type must fail before anything is written
redis.call('PEXPIRE', KEYS[1], ARGV[2])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(ARGV[4]) <= acked then
  return { 'repeated', 0, 0, 0, 0, 0, now_ms, '' }
end

local count = #KEYS - 4
local added = 0
local feed = {} -- the pieces of the feed's entry, encoded
local repeated, late, clamped, rejected, words = 0, 0, 0, 0, ''

local function ms_of(id) return tonumber(string.match(id, '^%d+')) end

-- How msgpack begins a text of so many bytes.
local HEAD = {}
for size = 1, 31 do HEAD[size] = string.char(0xa0 + size) end
for size = 32, 255 do HEAD[size] = string.char(0xd9, size) end

local function finish(field)
  if added > 0 then
    local head = added < 16 and string.char(0x90 + added)
      or string.char(0xdc, math.floor(added / 256), added % 256)
    redis.call('XADD', KEYS[4], 'MINID', '~', string.format('%.0f', now_ms - ARGV[5]), '*',
      field, head .. table.concat(feed))
  end
  redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
  return { 'applied', added, repeated, late, clamped, rejected, now_ms, words }
end

