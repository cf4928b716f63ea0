// Plays a part of a file in a loop without a gap at the seam, which an audio element cannot.

import { decodeFile } from "./audio.js"

export class LoopPlayer {
  /** Plays from `at`, then between `start` and `end`, in seconds, unless stop() comes first. Rejects where the browser cannot. */
  async play(url, at, start, end) {
    const turn = (this.turn = Symbol("turn"))
    this.context ??= new AudioContext()
    const buffer = await decodeFile(url) // not kept: up to half a gigabyte
    if (this.turn !== turn) return
    await this.context.resume()
    if (this.turn !== turn) return
    Object.assign(this, { at, start, end: Math.min(end, buffer.duration), source: this.context.createBufferSource() })
    Object.assign(this.source, { buffer, loop: true, loopStart: this.start, loopEnd: this.end })
    this.source.connect(this.context.destination)
    this.source.start(0, at)
    this.began = this.context.currentTime
  }

  /** Seconds in the file. */
  get time() {
    const far = this.at - this.start + this.context.currentTime - this.began
    return far < 0 ? this.start + far : this.start + (far % (this.end - this.start))
  }

  stop() {
    this.turn = null
    this.source?.stop()
    this.source?.disconnect()
    this.source = null
  }

  remove() {
    this.stop()
    this.context?.close()
    this.context = undefined
  }
}
