package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"reflect"

	"github.com/vmihailenco/msgpack/v5"
)

var tickNames = []string{
	"time", "lastPrice", "open", "high", "low", "lastClose", "amount", "volume", "pvolume",
	"stockStatus", "openInt", "transactionNum", "lastSettlementPrice", "settlementPrice", "pe",
	"askPrice", "bidPrice", "askVol", "bidVol", "volRatio", "speed1Min", "speed5Min", "extra",
	"flags",
}

var barNames = []string{
	"time", "open", "high", "low", "close", "volume", "amount", "settelementPrice",
	"openInterest", "preClose", "suspendFlag", "closed", "extra",
}

var isPrice = map[string]bool{
	"lastPrice": true, "open": true, "high": true, "low": true, "lastClose": true, "close": true,
	"lastSettlementPrice": true, "settlementPrice": true, "askPrice": true, "bidPrice": true,
	"settelementPrice": true, "preClose": true,
}

// record is one tick or bar by name, or a batch's elements beside it.
type record map[string]any

// price returns yuan: an integer is scaled by 10,000, a float is the price itself.
func price(value any) any {
	if list, ok := value.([]any); ok {
		prices := make([]any, len(list))
		for at, one := range list {
			prices[at] = price(one)
		}
		return prices
	}
	number := reflect.ValueOf(value)
	switch {
	case number.CanInt():
		return float64(number.Int()) / 10_000
	case number.CanUint():
		return float64(number.Uint()) / 10_000
	}
	return value
}

// plain returns what JSON can hold: null for NaN and infinities, hex for bytes.
func plain(value any) any {
	switch value := value.(type) {
	case float64:
		if math.IsNaN(value) || math.IsInf(value, 0) {
			return nil
		}
	case []byte:
		return hex.EncodeToString(value)
	case []any:
		values := make([]any, len(value))
		for at, one := range value {
			values[at] = plain(one)
		}
		return values
	case map[string]any:
		values := make(map[string]any, len(value))
		for key, one := range value {
			values[key] = plain(one)
		}
		return values
	}
	return value
}

// named returns an array's elements by name; later versions may have more elements.
func named(names []string, value any) (record, error) {
	row, ok := value.([]any)
	if !ok || len(row) < len(names) {
		return nil, fmt.Errorf("not an array of %d elements", len(names))
	}
	values := record{}
	for at, name := range names {
		if isPrice[name] {
			row[at] = price(row[at])
		}
		values[name] = plain(row[at])
	}
	if values["extra"] == nil {
		values["extra"] = record{}
	}
	return values, nil
}

// listed returns the records of rows whose elements have these names, the array itself last.
func listed(names []string, rows any, beside ...string) ([]record, error) {
	list, ok := rows.([]any)
	if !ok {
		return nil, fmt.Errorf("not an array")
	}
	records := make([]record, 0, len(list))
	for _, one := range list {
		row, ok := one.([]any)
		if !ok || len(row) != len(beside)+1 {
			return nil, fmt.Errorf("not an array of %d elements", len(beside)+1)
		}
		values, err := named(names, row[len(beside)])
		if err != nil {
			return nil, err
		}
		for at, name := range beside {
			values[name] = row[at]
		}
		records = append(records, values)
	}
	return records, nil
}

// decode returns the records of any schema.
func decode(schema string, data []byte) ([]record, error) {
	value, err := msgpack.NewDecoder(bytes.NewReader(data)).DecodeInterface()
	if err != nil {
		return nil, err
	}
	switch schema {
	case "t1":
		return listed(tickNames, []any{[]any{value}})
	case "k1":
		return listed(barNames, []any{[]any{value}})
	case "b1":
		return listed(tickNames, value, "code", "id")
	case "c1":
		return listed(barNames, value, "code", "period", "id")
	case "latest":
		return listed(tickNames, []any{value}, "id")
	}
	return nil, fmt.Errorf("schema %s is not known", schema)
}
