#!lua name=qmt2
-- What the producer has Redis do in one step: publish a batch, hold a market's lease. A library of
-- Redis Functions, so a user of Redis may call these and no script of its own. The number in the
-- names grows with each change, see protocol's redis_users.py. None is registered with flags: so Redis, out of
-- memory, read-only or without its disk, refuses the whole call before its first write.

local LATE, CLAMPED = 1, 2 -- flags, the last byte of t1
local LOOK = 64 -- stored entries compared, from either end
local NAMED = 20 -- bars named in `words`
local LEASE_MAX_MS = 60000 -- what is held for longer, or for ever, no producer of ours has written

-- How msgpack begins a text of so many bytes; filled by the first call, since Lua's own libraries are
-- not there yet while this file is loaded.
local HEAD = {}

local function fill_heads()
  for size = 1, 31 do HEAD[size] = string.char(0xa0 + size) end
  for size = 32, 255 do HEAD[size] = string.char(0xd9, size) end
end

local function ms_of(id) return tonumber(string.match(id, '^%d+')) end

local function redis_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function is_held(lease, holder) return redis.call('GET', lease) == holder end

-- A count as this library writes it; 0 for anything else that stands in its place.
local function count_of(text) return tonumber(text or '0') or 0 end

-- What stands in a stream or in `latest` may be of others: nil where it is no msgpack array.
local function unpacked(data)
  local well, value = pcall(cmsgpack.unpack, data)
  return well and type(value) == 'table' and value or nil
end

-- Publishing --------------------------------------------------------------------------------------
-- keys: 1 lease, 2 acked, 3 latest, 4 feed, then one stream per entry.
-- args: 1 holder, 2 lease ms, 3 ring id, 4 batch number, 5 feed keep ms, 6 future ms, then what each
--       function says per entry; last: the batch number that Redis acknowledged before.
-- Returns: state, added, repeated, late, clamped, rejected, Redis ms, words on the last two.

local function answer(state, now_ms, batch)
  batch = batch or {}
  return {
    state, batch.added or 0, batch.repeated or 0, batch.late or 0, batch.clamped or 0,
    batch.rejected or 0, now_ms, batch.words or '',
  }
end

-- Looks whether the batch may be published and renews the lease. Returns the batch, or nil and what
-- to answer.
local function begin(keys, args)
  if not is_held(keys[1], args[1]) then return nil, answer('fenced', 0) end
  local acked = count_of(redis.call('HGET', keys[2], args[3]))
  if acked < tonumber(args[#args]) then -- an older copy of Redis is back under a lease still good
    return nil, answer('lost', 0)
  end
  if not HEAD[1] then fill_heads() end
  redis.call('XLEN', keys[4]) -- a feed of another type must fail before anything is written
  redis.call('PEXPIRE', keys[1], args[2])
  local now_ms = redis_ms()
  if tonumber(args[4]) <= acked then return nil, answer('repeated', now_ms) end
  return {
    now_ms = now_ms, added = 0, repeated = 0, late = 0, clamped = 0, rejected = 0, words = '',
    feed = {}, -- the pieces of the feed's entry, encoded
  }
end

local function finish(keys, args, batch, field)
  local added = batch.added
  if added > 0 then
    local head = added < 16 and string.char(0x90 + added)
      or string.char(0xdc, math.floor(added / 256), added % 256)
    redis.call('XADD', keys[4], 'MINID', '~', string.format('%.0f', batch.now_ms - args[5]), '*',
      field, head .. table.concat(batch.feed))
  end
  redis.call('HSET', keys[2], args[3], args[4])
  return answer('applied', batch.now_ms, batch)
end

-- Ticks -------------------------------------------------------------------------------------------
-- args per entry: code, ms, t1. A tick newer than all of its stream costs one XADD, which finds that
-- out by itself: it refuses the id `ms-0` at or behind the stream's last. What is stored is read only
-- then, and where there is no stream. In place of its ms a tick may have its whole id, as a replay's
-- have: it was judged when it was first published, and is filed again as it was.

local VOLUME = 8 -- t1 positions, counted from 1
local CONTENT = { 1, 2, 8 } -- time, lastPrice, volume: what any terminal reports alike
local BOOK = { 16, 17, 18, 19 }

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
    local stored = unpacked(entry[2][2])
    if stored and same(stored, tick) then return true end
  end
  return false
end

local function publish_ticks(keys, args)
  local batch, refused = begin(keys, args)
  if not batch then return refused end
  local latest, slots, place = {}, 0, {} -- code, entry, code, entry ... and where a code's is
  local feed, pieces, added = batch.feed, 0, 0

  local function latest_of(code) -- ms and tick
    local entry = place[code] and latest[place[code]] or redis.call('HGET', keys[3], code)
    if not entry then return end
    local head = (string.byte(entry, 2) or 0) - 0xa0 -- msgpack [fixstr id, t1]
    local tick = head > 0 and head < 32 and unpacked(string.sub(entry, 3 + head))
    if not tick then return end
    return ms_of(string.sub(entry, 3, 2 + head)), tick
  end

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
    if batch.rejected == 0 then batch.words = code .. ': ' .. err end
    batch.rejected = batch.rejected + 1
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
        batch.repeated = batch.repeated + 1
        return
      end
      if ms == tip_ms then -- the same moment again: news, unless its volume went back
        behind = held and (tick[VOLUME] or 0) < (held[VOLUME] or 0)
      else
        behind, ms = true, tip_ms
      end
    end
    if behind then flags, batch.late = bit.bor(flags, LATE), batch.late + 1 end
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
      batch.repeated = batch.repeated + 1
      return
    end
    if behind then batch.late = batch.late + 1 end
    tell(code, id, t1, behind)
  end

  local pcall, last_ms = redis.pcall, batch.now_ms + tonumber(args[6])
  for i = 1, #keys - 4 do
    local at = 3 * i + 4
    local code, key, ms, t1 = args[at], keys[4 + i], args[at + 1], args[at + 2]
    local number = tonumber(ms)
    if not number then
      again(code, key, ms, t1)
    elseif number > last_ms then
      batch.clamped = batch.clamped + 1
      settle(code, key, batch.now_ms, t1, bit.bor(string.byte(t1, -1), CLAMPED))
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
  if slots > 0 then redis.call('HSET', keys[3], unpack(latest)) end
  batch.added = added
  return finish(keys, args, batch, 'b1')
end

-- Bars --------------------------------------------------------------------------------------------
-- args per entry: code, period, label ms, k1. An entry's id is its label. Within one label: the same
-- bytes as one of the last entries, a forming bar behind a closed one, and a forming bar whose volume
-- went back are older states and are dropped as repeats; a closed bar unlike the closed ones before
-- it is a correction and is added. A bar whose label lies before the stream's last is late: dropped,
-- and named in `words`. In place of its label a bar may have its whole id, as a replay's have.

local BAR_VOLUME, CLOSED = 6, 12 -- k1 positions, counted from 1

local function is_number(value) return type(value) == 'number' and value or 0 end

local function older(key, label, k1) -- than what is stored under the same label
  local entries = redis.call('XREVRANGE', key, label, label, 'COUNT', LOOK)
  if not entries[1] then return false end
  for _, entry in ipairs(entries) do
    if entry[2][2] == k1 then return true end
  end
  local held, new = unpacked(entries[1][2][2]), cmsgpack.unpack(k1)
  if new[CLOSED] or not held then return false end
  return held[CLOSED] or is_number(new[BAR_VOLUME]) < is_number(held[BAR_VOLUME])
end

local function publish_bars(keys, args)
  local batch, refused = begin(keys, args)
  if not batch then return refused end

  local function say(what)
    if batch.late + batch.rejected > NAMED then return end
    batch.words = batch.words .. (batch.words == '' and '' or '; ') .. what
  end

  for i = 1, #keys - 4 do
    local key, at = keys[4 + i], 4 * i + 3
    local code, period, label, k1 = args[at], args[at + 1], args[at + 2], args[at + 3]
    local label_ms, filed = ms_of(label), tonumber(label) == nil
    local tail = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)
    local last_ms = tail.err == nil and tail[1] and ms_of(tail[1][1]) or -1
    if label_ms <= last_ms and older(key, label_ms, k1) then
      batch.repeated = batch.repeated + 1
    elseif label_ms < last_ms then
      batch.late = batch.late + 1
      say(period .. '|' .. code .. ' ' .. label)
    else
      local id = redis.pcall('XADD', key, filed and label or label .. '-*', 'k1', k1)
      if type(id) == 'table' then
        batch.rejected = batch.rejected + 1
        say(period .. '|' .. code .. ': ' .. id.err)
      else
        batch.added = batch.added + 1
        batch.feed[batch.added] = '\148' .. HEAD[#code] .. code .. HEAD[#period] .. period
          .. HEAD[#id] .. id .. k1
      end
    end
  end
  return finish(keys, args, batch, 'c1')
end

-- The lease ---------------------------------------------------------------------------------------

-- Takes it where it is free or ours. keys: lease, epoch, acked, feed. args: holder, lease ms, an epoch
-- for a market that has none, ring id, name of the field of `complete`. Returns the holder, then what
-- the taker must know: its last batch applied, the id of the feed's last entry, Redis time, and up to
-- when all is complete.
local function lease(keys, args)
  local held = redis.call('GET', keys[1])
  if held and held ~= args[1] then
    local left_ms = redis.call('PTTL', keys[1])
    if left_ms >= 0 and left_ms <= LEASE_MAX_MS then return { held } end
  end
  redis.call('SET', keys[1], args[1], 'PX', args[2])
  redis.call('SET', keys[2], args[3], 'NX')
  local tail = redis.call('XREVRANGE', keys[4], '+', '-', 'COUNT', 1)
  return {
    args[1],
    redis.call('HGET', keys[3], args[4]) or '0',
    tail[1] and tail[1][1] or '',
    redis_ms(),
    redis.call('HGET', keys[3], args[5]) or '',
  }
end

-- Says up to when all is complete, if the holder's last batch is really there: the call travels
-- behind its batches. keys: lease, acked. args: holder, ring id, batch number, what to say, its field.
local function complete(keys, args)
  if not is_held(keys[1], args[1]) then return 0 end
  if redis.call('HGET', keys[2], args[2]) ~= args[3] then return 0 end
  redis.call('HSET', keys[2], args[5], args[4])
  return 1
end

-- Begins another epoch. keys: lease, epoch. args: holder, epoch.
local function epoch(keys, args)
  if not is_held(keys[1], args[1]) then return 0 end
  redis.call('SET', keys[2], args[2])
  return 1
end

-- Gives the lease back. keys: lease. args: holder.
local function release(keys, args)
  if not is_held(keys[1], args[1]) then return 0 end
  return redis.call('DEL', keys[1])
end

redis.register_function('qmt2_publish_ticks', publish_ticks)
redis.register_function('qmt2_publish_bars', publish_bars)
redis.register_function('qmt2_lease', lease)
redis.register_function('qmt2_complete', complete)
redis.register_function('qmt2_epoch', epoch)
redis.register_function('qmt2_release', release)
