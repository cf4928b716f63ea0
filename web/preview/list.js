// The items of a batch as rows: a check box, a player, measurements, and what to do with the item.

import { formatKeep, parseKeep } from "./keep.js"
import { Player } from "./player.js"
import { words } from "./words.js"

const FEEDBACK = 1500 // ms for which a button shows its result

/**
 * keep: {get(), set(text), linked()}, the `keep` widget and whether a link provides its value.
 * actions: {copy(text), use(file), drag(event, file)}; copy and use resolve to whether they worked. `root` is the element.
 */
export class ItemList {
  constructor(keep, actions) {
    this.keep = keep
    this.actions = actions
    this.rows = []
    this.root = make("div", "sa3-batch")
    // Keeps these events from the graph's canvas.
    for (const name of ["pointerdown", "dblclick", "contextmenu"]) this.root.addEventListener(name, event => event.stopPropagation())
    this.root.addEventListener("wheel", event => this.scrolls() && event.stopPropagation(), { passive: true })
    this.show([])
  }

  show(items) {
    this.clear()
    const texts = words()
    if (!items.length) return this.root.append(make("div", "sa3-batch-empty", texts.empty))
    this.state = make("span")
    const all = make("button", "", texts.all)
    const none = make("button", "", texts.none)
    all.onclick = () => this.write(new Set(this.rows.keys()))
    none.onclick = () => this.write(new Set())
    this.head = make("div", "sa3-batch-head")
    this.head.append(this.state, all, none)
    this.list = make("div", "sa3-batch-list")
    this.rows = items.map((item, i) => this.row(item, i, texts))
    this.list.append(...this.rows.map(row => row.root))
    this.root.append(this.head, this.list)
    this.read()
  }

  row(item, index, texts) {
    const root = make("div", "sa3-batch-row")
    const label = make("label", "sa3-batch-keep")
    const box = Object.assign(document.createElement("input"), { type: "checkbox", title: texts.keep, ariaLabel: `${texts.keep} ${index + 1}` })
    box.onchange = () => this.toggle(index, box.checked)
    label.append(box, `${index + 1}`)
    const button = make("button", "sa3-batch-play")
    button.title = texts.play
    const sides = make("div", "sa3-batch-sides")
    const player = new Player(
      item,
      texts,
      ({ playing, shown }) => {
        root.classList.toggle("sa3-playing", playing)
        button.textContent = playing ? "❚❚" : "▶"
        sides.childNodes.forEach((side, i) => side.setAttribute("aria-pressed", String(i === shown)))
      },
      ({ picture }) => {
        if (picture.isConnected) picture.replaceWith(make("div", "sa3-batch-gone", texts.gone))
        for (const tool of root.querySelectorAll(".sa3-batch-use, .sa3-batch-grip")) tool.remove() // they need the file
      },
    )
    button.onclick = () => player.toggle()
    if (item.original) {
      ;["A", "B"].forEach((name, i) => {
        const side = make("button", "", name)
        side.title = [texts.item, texts.original][i]
        side.onclick = () => player.switchTo(i)
        sides.append(side)
      })
    }
    root.tabIndex = 0
    root.onkeydown = event => {
      if (event.target !== root || event.ctrlKey || event.metaKey || event.altKey || !player.key(event.key)) return
      event.preventDefault()
      event.stopPropagation()
    }
    root.append(label, button, player.picture, sides, facts(item, texts, this.tools(item, index, texts)))
    player.draw()
    return { root, box, player }
  }

  /** The buttons of an item: copy its seed, use it as a source, drag its file. */
  tools(item, index, texts) {
    const file = { url: item.audio, name: `sa3_item_${index + 1}${item.seed === null ? "" : `_seed_${item.seed}`}.wav` }
    const use = make("button", "sa3-batch-use", "⇥")
    use.title = texts.use
    use.onclick = () => feedback(use, this.actions.use(file), "✓", texts.used)
    const grip = Object.assign(make("span", "sa3-batch-grip", "⠿"), { draggable: true, title: texts.drag })
    grip.ondragstart = event => this.actions.drag(event, file)
    const buttons = [use, grip]
    if (item.seed !== null) {
      const seed = make("button", "sa3-batch-seed", `seed ${item.seed}`)
      seed.title = `${texts.seed}: ${item.seed}. ${texts.copy}`
      seed.onclick = () => feedback(seed, this.actions.copy(item.seed), texts.copied, texts.copied)
      buttons.unshift(seed)
    }
    return buttons
  }

  toggle(index, kept) {
    const items = parseKeep(this.keep.get(), this.rows.length) ?? new Set()
    if (kept) items.add(index)
    else items.delete(index)
    this.write(items)
  }

  write(items) {
    this.keep.set(formatKeep(items, this.rows.length))
    this.read()
  }

  /** Updates the boxes and the summary from the text. */
  read() {
    if (!this.rows.length) return
    const texts = words()
    const kept = parseKeep(this.keep.get(), this.rows.length)
    const linked = this.keep.linked()
    this.rows.forEach(({ root, box }, i) => {
      box.disabled = linked
      box.checked = !linked && !!kept?.has(i)
      root.classList.toggle("sa3-dropped", !linked && !!kept?.size && !kept.has(i))
    })
    this.head.classList.toggle("sa3-unclear", !linked && !kept)
    this.state.textContent = linked ? texts.linked : kept ? texts.kept(kept.size, this.rows.length) : texts.unclear
  }

  scrolls() {
    return this.list && this.list.scrollHeight > this.list.clientHeight
  }

  clear() {
    for (const { player } of this.rows) player.stop()
    this.rows = []
    this.root.replaceChildren()
  }
}

/** Shows a text, with a title, on a button for a while once a promise is true. */
async function feedback(button, promise, text, title) {
  const before = [button.textContent, button.title]
  button.disabled = true
  if (await promise) {
    ;[button.textContent, button.title] = [text, title]
    await new Promise(resolve => setTimeout(resolve, FEEDBACK))
    ;[button.textContent, button.title] = before
  }
  button.disabled = false
}

function facts(item, texts, buttons) {
  const line = make("div", "sa3-batch-facts")
  const levels = make("div", "sa3-batch-levels")
  const tools = make("div", "sa3-batch-tools")
  const verdict = make("b", "", texts.verdicts[item.verdict] ?? item.verdict)
  verdict.dataset.verdict = item.verdict
  const values = [`${item.seconds.toFixed(3)} s`, level(item.integrated, "LUFS"), `peak ${level(item.true_peak, "dBTP")}`]
  levels.append(verdict, ...values.map(text => make("span", "", text)))
  levels.title = [...values, `RMS ${level(item.rms, "dB")}`].join("  ") // a narrow node cuts the line
  tools.append(...buttons)
  line.append(levels, tools)
  return line
}

function level(value, unit) {
  return `${value === null ? "-∞" : value.toFixed(1)} ${unit}`
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag)
  if (className) element.className = className
  if (text) element.textContent = text
  return element
}
