// The texts inside MP3 (ID3v2.4), Opus (Ogg) and M4A files, read without loading the audio. Files are untrusted.

const LARGEST = 64 * 2 ** 20 // bytes to read for the texts
const MOST = 10_000 // pages, boxes, frames or comments to read

/** {name: text} of a File of one of these formats; {} for other files. */
export async function tagsOf(file) {
  const start = await bytes(file, 0, 12)
  if (text(start, 0, 3) === "ID3") return id3(await bytes(file, 10, syncsafe(start, 6)))
  if (text(start, 0, 4) === "OggS") return comments(await secondPacket(file))
  if (text(start, 4, 8) === "ftyp") return itemList(await box(file, "moov"))
  return {}
}

/** The frames of the user's texts: TXXX, encoding, name, 0, text. */
function id3(data) {
  const found = {}
  for (let at = 0, count = 0; count < MOST && at + 10 <= data.length && data[at]; count++, at += 10 + syncsafe(data, at + 4)) {
    if (text(data, at, at + 4) !== "TXXX") continue
    const [name, value] = text(data, at + 11, at + 10 + syncsafe(data, at + 4)).split("\0")
    found[name] = value
  }
  return found
}

/** The second packet of an Ogg stream, joined from its pages. */
async function secondPacket(file) {
  const parts = []
  for (let at = 0, page = 0; page < MOST && at + 27 <= file.size && at < LARGEST; page++) {
    const head = await bytes(file, at, 27 + 255)
    const lengths = head.subarray(27, 27 + head[26])
    const size = lengths.reduce((sum, length) => sum + length, 0)
    at += 27 + lengths.length
    if (page) parts.push(await bytes(file, at, size))
    if (page && lengths.at(-1) < 255) break
    at += size
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer())
}

/** name=text, each after its length. */
function comments(data) {
  const found = {}
  const view = new DataView(data.buffer)
  if (text(data, 0, 8) !== "OpusTags" || data.length < 16) return found
  let at = 12 + view.getUint32(8, true) // after the vendor
  const count = at + 4 <= data.length ? view.getUint32(at, true) : 0
  at += 4
  for (let i = 0; i < Math.min(count, MOST) && at + 4 <= data.length; i++) {
    const end = at + 4 + view.getUint32(at, true)
    const words = text(data, at + 4, end)
    const cut = words.indexOf("=")
    if (cut > 0) found[words.slice(0, cut)] = words.slice(cut + 1)
    at = end
  }
  return found
}

/** The content of a box at the top of an MP4. */
async function box(file, name) {
  for (let at = 0, count = 0; count < MOST && at + 8 <= file.size; count++) {
    const head = await bytes(file, at, 8)
    if (text(head, 4, 8) === name) return bytes(file, at + 8, u32(head, 0) - 8)
    at += Math.max(8, u32(head, 0))
  }
  return new Uint8Array()
}

/** The names in `keys` with the texts in `ilst` of a moov box. */
function itemList(moov) {
  const inside = (data, name, skip = 0) => boxes(data).find(one => one.name === name)?.content.subarray(skip) ?? new Uint8Array()
  const meta = inside(inside(moov, "udta"), "meta", 4)
  const names = boxes(inside(meta, "keys", 8)).map(({ content }) => text(content))
  const items = boxes(inside(meta, "ilst")).map(({ content, number }) => [names[number - 1], text(inside(content, "data", 8))])
  return Object.fromEntries(items.filter(([name]) => name))
}

function boxes(data) {
  const found = []
  for (let at = 0; at + 8 <= data.length && found.length < MOST; at += Math.max(8, u32(data, at))) {
    found.push({ name: text(data, at + 4, at + 8), number: u32(data, at + 4), content: data.subarray(at + 8, Math.max(at + 8, at + u32(data, at))) })
  }
  return found
}

async function bytes(file, start, size) {
  return new Uint8Array(await file.slice(start, start + Math.min(Math.max(size, 0), LARGEST)).arrayBuffer())
}

function text(data, start = 0, end = data.length) {
  return new TextDecoder().decode(data.subarray(start, end))
}

function u32(data, at) {
  return ((data[at] << 24) | (data[at + 1] << 16) | (data[at + 2] << 8) | data[at + 3]) >>> 0
}

/** Four bytes of seven bits, as ID3 writes sizes. */
function syncsafe(data, at) {
  return (data[at] << 21) | (data[at + 1] << 14) | (data[at + 2] << 7) | data[at + 3]
}
