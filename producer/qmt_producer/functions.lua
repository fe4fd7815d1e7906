#!lua name=qmt3
-- What the producer has Redis do in one step: append a batch to a market's feed, file it from there, hold
-- the market's lease. A library of Redis Functions, so a user of Redis may call these and no script of its
-- own. The number in the names grows with each change, see protocol's redis_users.py. None is registered
-- with flags: so Redis, out of memory, read-only or without its disk, refuses the whole call before its
-- first write.

local LATE = 1 -- flag, in the last byte of t1
local NAMED = 20 -- refused entries named in one answer
local LEASE_MAX_MS = 60000 -- what is held for longer, or for ever, no producer of ours has written
local BEGINNING = '0-0'

local function redis_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function is_id(text) return text and string.match(text, '^%d+%-%d+$') and #text < 42 end

-- Whether one id lies behind another. Both may have more digits than a number of Lua's can hold.
local function is_behind(id, other)
  local function split(text)
    local ms, number = string.match(text, '^0*(%d-)%-0*(%d*)$')
    return { ms or '', number or '' }
  end
  local a, b = split(id), split(other)
  for i = 1, 2 do
    if #a[i] ~= #b[i] then return #a[i] > #b[i] end
    if a[i] ~= b[i] then return a[i] > b[i] end
  end
  return false
end

-- A count as this library writes it; 0 for anything else that stands in its place.
local function count_of(text)
  return text and #text < 16 and string.match(text, '^%d+$') and tonumber(text) or 0
end

-- The lease holds the term: who holds it, a space, and what tells this time of holding from all others.
local function is_held(lease, term) return redis.call('GET', lease) == term end

-- Appending ---------------------------------------------------------------------------------------
-- keys: lease, acked, feed.
-- args: 1 term, 2 lease ms, 3 ring id, 4 batch number, 5 the ring's batch applied before it, 6 feed keep
--       ms, 7 filed up to, 8 the greatest ms of the batch, 9 future ms, 10 field, 11 body, 12 sizes.
-- What the holder knows of the market is as of (term, batch applied before): where that is not so, nothing
-- is appended. Returns: state, Redis ms, entry id.

local function append(keys, args)
  if not is_held(keys[1], args[1]) then return { 'fenced', 0, '' } end
  if count_of(redis.call('HGET', keys[2], args[3])) ~= tonumber(args[5]) then
    return { 'lost', 0, '' }
  end
  local now_ms = redis_ms()
  if tonumber(args[8]) > now_ms + tonumber(args[9]) then return { 'ahead', now_ms, '' } end
  local id = ''
  if args[11] ~= '' then
    local oldest = string.format('%.0f-0', math.max(now_ms - args[6], 0))
    if is_behind(oldest, args[7]) then oldest = args[7] end -- what is not filed yet stays
    id = redis.call('XADD', keys[3], 'MINID', '~', oldest, '*', args[10], args[11], 'sizes', args[12])
  end
  redis.call('PEXPIRE', keys[1], args[2])
  redis.call('HSET', keys[2], args[3], args[4])
  return { 'applied', now_ms, id }
end

-- Filing ------------------------------------------------------------------------------------------
-- keys: 1 filed, 2 feed, 3 latest, then the stream of each tick or bar in the entry.
-- args: id of the entry behind `filed`.
-- Cuts the entry by its sizes and adds each piece to its stream, under the id that it was given. May be
-- done by anybody, and again: what is there already stays. Returns: state, filed up to, how many were
-- refused, words on them, their places in the entry.

-- What an entry's pieces are of (a code, of bars a want), where their ids are (the byte that begins the
-- text), and where they begin and end; nil where it is damaged.
local function pieces_of(body, sizes, texts)
  local byte = string.byte
  local head, at = byte(body, 1) or 0, 2
  local count = head >= 0x90 and head < 0xa0 and head - 0x90 or 0
  if head == 0xdc and #body > 3 then
    count, at = byte(body, 2) * 256 + byte(body, 3), 4
  end
  if count == 0 or #sizes ~= 4 * count then return nil end
  local codes, ids, starts, ends = {}, {}, {}, {}

  local function behind_text(from) -- where what follows a msgpack text begins, and where its letters do
    local one = byte(body, from) or 0
    if one >= 0xa0 and one < 0xc0 then return from + 1 + one - 0xa0, from + 1 end
    if one == 0xd9 then return from + 2 + (byte(body, from + 1) or 0), from + 2 end
  end

  for i = 1, count do
    if byte(body, at) ~= 0x91 + texts then return nil end
    local next, first = behind_text(at + 1)
    if not next then return nil end
    codes[i] = string.sub(body, first, next - 1)
    if texts == 3 then
      local period = next + 1
      next = behind_text(next)
      if not next then return nil end
      codes[i] = string.sub(body, period, next - 1) .. '|' .. codes[i]
    end
    ids[i] = next
    next = behind_text(next)
    if not next then return nil end
    starts[i] = next
    at = next + struct.unpack('>I4', sizes, 4 * i - 3)
    ends[i] = at - 1
  end
  if at ~= #body + 1 then return nil end
  return codes, ids, starts, ends
end

local function file(keys, args)
  local filed = redis.call('GET', keys[1]) or BEGINNING
  if not is_id(filed) then return { 'other', filed, 0, '' } end
  local entry = redis.call('XRANGE', keys[2], '(' .. filed, '+', 'COUNT', 1)[1]
  if not entry or entry[1] ~= args[1] then return { 'other', filed, 0, '' } end
  redis.call('HLEN', keys[3]) -- a hash of another type must fail before anything is written

  local fields, refused, words, places = {}, 0, '', {}
  for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
  local field = fields.b1 and 't1' or 'k1'
  local body = fields.b1 or fields.c1 or ''
  local codes, ids, starts, ends = pieces_of(body, fields.sizes or '', fields.b1 and 2 or 3)
  if not codes or #codes ~= #keys - 3 then
    redis.call('SET', keys[1], entry[1])
    return { 'damaged', entry[1], 0, '' }
  end

  local sub, byte, pcall = string.sub, string.byte, redis.pcall
  local latest, slots, slot_of = {}, 0, {}

  local function is_forward(code, id) -- `latest` never goes back
    local held = redis.call('HGET', keys[3], code)
    local size = held and (byte(held, 2) or 0) - 0xa0
    local last = size and sub(held, 3, 2 + size)
    return not is_id(last) or is_behind(id, last)
  end

  -- Whether a refused piece is there already, by its bytes; if not, it is named.
  local function is_there(i, key, id, data, err)
    local stored = pcall('XRANGE', key, id, id)
    if not stored.err and stored[1] and stored[1][2][2] == data then return true end
    refused = refused + 1
    places[#places + 1] = i
    if refused <= NAMED then
      words = words .. (words == '' and '' or '; ') .. codes[i] .. ' ' .. id .. ': ' .. err
    end
    return false
  end

  for i = 1, #codes do
    local data, key = sub(body, starts[i], ends[i]), keys[3 + i]
    local at = ids[i] + (byte(body, ids[i]) == 0xd9 and 2 or 1)
    local id = sub(body, at, starts[i] - 1)
    local done, code = pcall('XADD', key, id, field, data), codes[i]
    local is_newest = field == 't1' and byte(data, -1) % 2 ~= LATE
    if type(done) == 'table' then
      is_newest = is_there(i, key, id, data, done.err) and is_newest and is_forward(code, id)
    end
    if is_newest then
      local slot = slot_of[code]
      if not slot then
        slot = slots + 2
        latest[slots + 1], slot_of[code], slots = code, slot, slot
      end
      latest[slot] = '\146' .. sub(body, ids[i], ends[i])
    end
  end
  if slots > 0 then redis.call('HSET', keys[3], unpack(latest)) end
  redis.call('SET', keys[1], entry[1])
  return { 'filed', entry[1], refused, words, places }
end

-- The lease ---------------------------------------------------------------------------------------

-- Takes it where it is free or ours, or goes on with it. keys: lease, epoch, acked, feed, filed.
-- args: 1 holder, 2 lease ms, 3 the term to go on with, 4 a new term, 5 an epoch for a market that has none,
--       6 ring id, 7 name of the field of `complete`.
-- Returns the term, then what the taker must know: its last batch applied, the id of the feed's last entry,
-- Redis time, up to when all is complete, and up to where it is filed.
local function lease(keys, args)
  local held = redis.call('GET', keys[1])
  if held and string.match(held, '^%S+') ~= args[1] then
    local left_ms = redis.call('PTTL', keys[1])
    if left_ms >= 0 and left_ms <= LEASE_MAX_MS then return { held } end
  end
  local term = held == args[3] and held or args[4]
  local applied, complete = unpack(redis.call('HMGET', keys[3], args[6], args[7]))
  local tail = redis.call('XREVRANGE', keys[4], '+', '-', 'COUNT', 1)
  local filed = redis.call('GET', keys[5]) or BEGINNING
  redis.call('SET', keys[1], term, 'PX', args[2])
  redis.call('SET', keys[2], args[5], 'NX')
  if not is_id(filed) or filed == BEGINNING then redis.call('SET', keys[5], BEGINNING) end
  return { term, applied or '0', tail[1] and tail[1][1] or '', redis_ms(), complete or '', filed }
end

-- Says up to when all is complete, if the holder's last batch is really there: the call travels
-- behind its batches. keys: lease, acked. args: term, ring id, batch number, what to say, its field.
local function complete(keys, args)
  if not is_held(keys[1], args[1]) then return 0 end
  if redis.call('HGET', keys[2], args[2]) ~= args[3] then return 0 end
  redis.call('HSET', keys[2], args[5], args[4])
  return 1
end

-- Begins another epoch. keys: lease, epoch, filed, acked. args: term, epoch, up to where it is filed, ring
-- id, its last batch that counts as applied.
local function epoch(keys, args)
  if not is_held(keys[1], args[1]) then return 0 end
  redis.call('SET', keys[2], args[2])
  redis.call('SET', keys[3], args[3])
  redis.call('HSET', keys[4], args[4], args[5])
  return 1
end

-- Gives the lease back. keys: lease. args: term.
local function release(keys, args)
  if not is_held(keys[1], args[1]) then return 0 end
  return redis.call('DEL', keys[1])
end

redis.register_function('qmt3_append', append)
redis.register_function('qmt3_file', file)
redis.register_function('qmt3_lease', lease)
redis.register_function('qmt3_complete', complete)
redis.register_function('qmt3_epoch', epoch)
redis.register_function('qmt3_release', release)
