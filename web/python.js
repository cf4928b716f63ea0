// Text as Python reads and writes it, so that a widget means the same to the editor and to its node.

const SPACES = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]*"
const ENDS = new RegExp(`^${SPACES}|${SPACES}$`, "gu")
const DIGITS = "\\d(?:_?\\d)*"
const NUMBER = new RegExp(`^[+-]?(?:${DIGITS}\\.?(?:${DIGITS})?|\\.${DIGITS})(?:e[+-]?${DIGITS})?$`, "i")
const NOT_FINITE = /^[+-]?(?:inf|infinity|nan)$/i

/** str.strip(): JavaScript's trim() removes other characters. */
export function strip(text) {
  return text.replace(ENDS, "")
}

/** float(text.strip()), null where Python raises ValueError. */
export function float(text) {
  const word = asciiDigits(strip(text))
  if (NOT_FINITE.test(word)) return /nan/i.test(word) ? NaN : word.startsWith("-") ? -Infinity : Infinity
  return NUMBER.test(word) ? Number(word.replaceAll("_", "")) : null
}

/** The text with the decimal digits of every script as 0 to 9. */
export function asciiDigits(text) {
  return text.replace(/\p{Nd}/gu, digit)
}

/** f"{value:.9f}" without trailing zeros, for value >= 0. Python rounds exact ties to even, toFixed() rounds them up. */
export function decimal(value) {
  if (value >= 1e21) return BigInt(value).toString()
  const exact = value.toFixed(60)
  const cut = exact.indexOf(".") + 10
  const even = Number(exact[cut - 1]) % 2 === 0
  const text = even && /^50*$/.test(exact.slice(cut)) ? exact.slice(0, cut) : value.toFixed(9)
  return text.replace(/0+$/, "").replace(/\.$/, "")
}

/** Unicode keeps the ten digits of a script in a row, so the value is the distance from the first of the row. */
function digit(character) {
  const isDigit = code => /^\p{Nd}$/u.test(String.fromCodePoint(code))
  const code = character.codePointAt(0)
  let first = code
  while (isDigit(first - 1)) first--
  return String((code - first) % 10)
}
