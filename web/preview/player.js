// Plays one item: a waveform image to seek in, and a switch to the original at the same time.

const STEP = 2 // seconds of an arrow key
let sounding = null // the player that plays, one at a time

export class Player {
  /** files: URLs {audio, original?, picture}. onState(player): called when its display changes. onGone(player): when a file is missing. */
  constructor(files, texts, onState, onGone) {
    this.onState = onState
    const gone = () => onGone(this)
    this.sides = [files.audio, files.original].filter(Boolean).map(source => this.side(source, gone))
    this.shown = 0
    this.picture = document.createElement("div")
    this.picture.className = "sa3-batch-picture"
    this.picture.title = texts.seek
    const image = document.createElement("img")
    image.draggable = false
    image.onerror = gone
    image.src = files.picture
    this.cursor = document.createElement("i")
    this.time = document.createElement("span")
    this.picture.append(image, this.cursor, this.time, ...this.sides)
    this.picture.addEventListener("pointerdown", event => this.drag(event))
    this.picture.addEventListener("pointermove", event => event.buttons & 1 && this.drag(event))
    this.draw()
  }

  side(source, onGone) {
    const audio = document.createElement("audio")
    audio.preload = "metadata"
    audio.onloadedmetadata = () => this.draw()
    audio.onended = audio.onpause = audio.onplay = audio.onseeked = () => this.draw()
    audio.onerror = onGone
    audio.src = source
    return audio
  }

  get audio() {
    return this.sides[this.shown]
  }

  get playing() {
    return !this.audio.paused && !this.audio.ended
  }

  toggle() {
    if (this.playing) return this.audio.pause()
    if (sounding && sounding !== this) sounding.audio.pause()
    sounding = this
    this.audio.play().catch(() => this.draw()) // browsers may require a click first
  }

  /** Jumps to seconds from the start, clamped to the clip. */
  seek(seconds) {
    const { duration } = this.audio
    if (Number.isFinite(duration)) this.audio.currentTime = Math.min(Math.max(seconds, 0), duration)
    this.draw()
  }

  /** Switches to 0, the item, or 1, the original, at the same time; playback continues. */
  switchTo(side) {
    if (side === this.shown || !this.sides[side]) return
    const { playing, audio } = this
    audio.pause()
    this.shown = side
    this.seek(audio.currentTime)
    if (playing) this.toggle()
    this.draw()
  }

  drag(event) {
    event.preventDefault()
    const frame = this.picture.getBoundingClientRect()
    this.seek(((event.clientX - frame.left) / frame.width) * this.audio.duration)
    if (event.type === "pointerdown") this.picture.setPointerCapture(event.pointerId)
  }

  /** Runs the action of a key. Returns whether it has one. */
  key(key) {
    if (key === " ") this.toggle()
    else if (key === "ArrowLeft" || key === "ArrowRight") this.seek(this.audio.currentTime + (key === "ArrowLeft" ? -STEP : STEP))
    else if (key === "a" || key === "b") this.switchTo("ab".indexOf(key))
    else return false
    return true
  }

  draw() {
    const { currentTime, duration } = this.audio
    this.cursor.style.left = `${duration ? (100 * currentTime) / duration : 0}%`
    this.time.textContent = `${clock(currentTime)} / ${clock(duration)}`
    this.onState(this)
    if (this.playing && !this.frame) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0
        this.draw()
      })
    }
  }

  stop() {
    cancelAnimationFrame(this.frame)
    if (sounding === this) sounding = null
    for (const audio of this.sides) {
      audio.onended = audio.onpause = audio.onplay = audio.onseeked = audio.onerror = null
      audio.pause()
      audio.removeAttribute("src")
    }
  }
}

function clock(seconds) {
  if (!Number.isFinite(seconds)) return "–"
  const tenths = Math.round(seconds * 10)
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`
}
