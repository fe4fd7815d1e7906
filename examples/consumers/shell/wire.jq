# Decodes what docs/wire.md describes. jq has no bytes, so a byte string is an array of 0..255;
# `quoted` makes it of what `redis-cli --no-raw` prints, `hex` of hexadecimal text.

def tick_names: [
  "time", "lastPrice", "open", "high", "low", "lastClose", "amount", "volume", "pvolume",
  "stockStatus", "openInt", "transactionNum", "lastSettlementPrice", "settlementPrice", "pe",
  "askPrice", "bidPrice", "askVol", "bidVol", "volRatio", "speed1Min", "speed5Min", "extra",
  "flags"];

def bar_names: [
  "time", "open", "high", "low", "close", "volume", "amount", "settelementPrice",
  "openInterest", "preClose", "suspendFlag", "closed", "extra"];

def is_price: {
  lastPrice: 1, open: 1, high: 1, low: 1, lastClose: 1, close: 1, lastSettlementPrice: 1,
  settlementPrice: 1, askPrice: 1, bidPrice: 1, settelementPrice: 1, preClose: 1};

# redis-cli's "..." is JSON but for \xHH and \a.
def quoted:
  split("\\\\")
  | map(split("\\x") | join("\\u00") | split("\\a") | join("\\u0007"))
  | join("\\\\") | fromjson | explode;

def hex:
  ascii_downcase | explode | map(if . < 58 then . - 48 else . - 87 end)
  | [range(0; length; 2) as $at | .[$at] * 16 + .[$at + 1]];

# --- msgpack ------------------------------------------------------------------------------------
# A float becomes {float: number}: in a price an integer is scaled and a float is literal.

def uint($at; $size): reduce .[$at:$at + $size][] as $byte (0; . * 256 + $byte);

def int($at; $size):
  uint($at; $size) as $value
  | if .[$at] < 128 then $value
    # 64 bits do not fit into jq's numbers: count from the top.
    else -(reduce .[$at:$at + $size][] as $byte (0; . * 256 + 255 - $byte)) - 1 end;

# IEEE 754; the exponent apart, for jq's numbers hold the fraction and no bit more.
def float($at; $size; $exponent_bits):
  pow(2; 15 - $exponent_bits) as $split # the second byte has the end of the exponent
  | (8 * $size - 1 - $exponent_bits) as $fraction_bits
  | (pow(2; $exponent_bits - 1) - 1) as $bias
  | (if .[$at] < 128 then 1 else -1 end) as $sign
  | (.[$at] % 128 * 256 / $split + (.[$at + 1] / $split | floor)) as $exponent
  | reduce .[$at + 2:$at + $size][] as $byte (.[$at + 1] % $split; . * 256 + $byte)
  | {float: (
      if $exponent == 2 * $bias + 1 then null # NaN and infinities: JSON has none
      elif $exponent == 0 then $sign * ldexp(.; 1 - $bias - $fraction_bits)
      else $sign * ldexp(. + pow(2; $fraction_bits); $exponent - $bias - $fraction_bits) end)};

def utf8:
  reduce .[] as $byte ([];
    if $byte < 128 then . + [$byte]
    elif $byte < 192 then .[-1] = .[-1] * 64 + $byte - 128
    elif $byte < 224 then . + [$byte - 192]
    elif $byte < 240 then . + [$byte - 224]
    else . + [$byte - 240] end)
  | implode;

def hex_digits: "0123456789abcdef" / "";
def as_hex: map(hex_digits[(. / 16 | floor)] + hex_digits[. % 16]) | join("");

# Bytes in, [value, where the next one begins] out.
def at($at):
  def text($from; $size): [(.[$from:$from + $size] | utf8), $from + $size];
  def bytes($from; $size): [(.[$from:$from + $size] | as_hex), $from + $size];
  def list($from; $size):
    . as $all
    | reduce range($size) as $_ ([[], $from];
        . as [$values, $next] | ($all | at($next)) as [$value, $behind]
        | [$values + [$value], $behind]);
  def map_of($from; $size):
    . as $all
    | reduce range($size) as $_ ([{}, $from];
        . as [$values, $next] | ($all | at($next)) as [$key, $middle]
        | ($all | at($middle)) as [$value, $behind]
        | [$values + {($key): $value}, $behind]);
  .[$at] as $kind
  | if $kind < 128 then [$kind, $at + 1]
    elif $kind < 144 then map_of($at + 1; $kind - 128)
    elif $kind < 160 then list($at + 1; $kind - 144)
    elif $kind < 192 then text($at + 1; $kind - 160)
    elif $kind == 192 then [null, $at + 1]
    elif $kind == 194 then [false, $at + 1]
    elif $kind == 195 then [true, $at + 1]
    elif $kind == 196 then bytes($at + 2; uint($at + 1; 1))
    elif $kind == 197 then bytes($at + 3; uint($at + 1; 2))
    elif $kind == 198 then bytes($at + 5; uint($at + 1; 4))
    elif $kind == 202 then [float($at + 1; 4; 8), $at + 5]
    elif $kind == 203 then [float($at + 1; 8; 11), $at + 9]
    elif $kind == 204 then [uint($at + 1; 1), $at + 2]
    elif $kind == 205 then [uint($at + 1; 2), $at + 3]
    elif $kind == 206 then [uint($at + 1; 4), $at + 5]
    elif $kind == 207 then [uint($at + 1; 8), $at + 9]
    elif $kind == 208 then [int($at + 1; 1), $at + 2]
    elif $kind == 209 then [int($at + 1; 2), $at + 3]
    elif $kind == 210 then [int($at + 1; 4), $at + 5]
    elif $kind == 211 then [int($at + 1; 8), $at + 9]
    elif $kind == 217 then text($at + 2; uint($at + 1; 1))
    elif $kind == 218 then text($at + 3; uint($at + 1; 2))
    elif $kind == 219 then text($at + 5; uint($at + 1; 4))
    elif $kind == 220 then list($at + 3; uint($at + 1; 2))
    elif $kind == 221 then list($at + 5; uint($at + 1; 4))
    elif $kind == 222 then map_of($at + 3; uint($at + 1; 2))
    elif $kind == 223 then map_of($at + 5; uint($at + 1; 4))
    elif $kind >= 224 then [$kind - 256, $at + 1]
    else error("msgpack type \($kind) is not used on this wire") end;

# --- the schemas --------------------------------------------------------------------------------

def plain:
  if type == "array" then map(plain)
  elif type == "object" then if has("float") then .float else map_values(plain) end
  else . end;

def price:
  if type == "array" then map(price)
  elif type == "number" then . / 10000
  else plain end;

# An array's elements by name; later versions may have more elements.
def named($names):
  . as $row
  | reduce range($names | length) as $at ({};
      $names[$at] as $name
      | .[$name] = ($row[$at] | if is_price[$name] then price else plain end))
  | .extra |= (. // {});

def decode($schema):
  at(0)[0]
  | if $schema == "t1" then named(tick_names)
    elif $schema == "k1" then named(bar_names)
    elif $schema == "b1" then map({code: .[0], id: .[1]} + (.[2] | named(tick_names)))
    elif $schema == "c1" then
      map({code: .[0], period: .[1], id: .[2]} + (.[3] | named(bar_names)))
    elif $schema == "latest" then {id: .[0]} + (.[1] | named(tick_names))
    else error("schema \($schema) is not known") end;
