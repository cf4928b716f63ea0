// The recording of an editor, and what the last run made of it, on one time line.

import { loadClip } from "./audio.js"
import { fileUrl, findResult, findSource } from "./source.js"
import { fill } from "./texts.js"
import { Tiles } from "./tiles.js"

export class Sounds {
  /** editor: {node, model, host, texts, repaint()}. onRecording(message): it has changed; a text where there is none. */
  constructor(editor, onRecording) {
    Object.assign(this, { editor, onRecording, recording: null, source: "", message: "" })
    Object.assign(this, { after: false, result: null, resultFile: null }) // after: the result is shown
  }

  /** {clip, tiles, at} to draw and play, null where there is none. at: the time of the first sample in seconds. */
  get shown() {
    return (this.after && this.result) || this.recording
  }

  /** Whether only a run can bring the recording. */
  get waits() {
    return this.message === this.editor.texts.run
  }

  /** Reads changes of the graph since the last call. Cheap when there are none. */
  follow() {
    const { node, host, texts } = this.editor
    const outputs = host.outputs()
    const found = findSource(node, outputs)
    const source = JSON.stringify(found)
    if (source !== this.source) {
      this.source = source
      if (found.files.length) this.loading = this.load(found.files, source)
      else this.record(null, texts[found.missing])
    }
    const file = this.recording && findResult(node, outputs)
    if (JSON.stringify(file) !== JSON.stringify(this.resultFile)) this.replaceResult(file)
  }

  /** Looks again for a recording that was missing, until it is loaded. */
  async retry() {
    if (!this.recording) this.source = ""
    this.follow()
    await this.loading
  }

  /** Shows the result of the last run, or the recording. Rejects with AudioError. */
  async compare(after) {
    const { resultFile, editor } = this
    this.after = after && Boolean(resultFile)
    if (this.after && !this.result) {
      const clip = await loadClip(fileUrl(editor.host.api, resultFile))
      if (resultFile !== this.resultFile) return
      this.result = this.placed(clip, editor.model.before ? this.recording.clip.duration - clip.duration : 0)
    }
    editor.repaint()
  }

  stop() {
    this.recording?.tiles.stop()
    this.result?.tiles.stop()
  }

  /** Shows the first readable of several files, unless the source has changed while it was loading. */
  async load(files, source) {
    const { texts, host } = this.editor
    this.record(null, texts.loading)
    let failure = null
    for (const file of files) {
      try {
        const clip = await loadClip(fileUrl(host.api, file), file.type === "temp")
        const long = failure?.reason === "long" // the file itself is played, see editor_audio in nodes/comfyui/preview.py
        if (this.source === source) this.record(long ? { ...clip, url: fileUrl(host.api, files[0]) } : clip, "")
        return
      } catch (error) {
        failure ??= file.type === "temp" && error.reason === "missing" ? { reason: "run" } : error // ComfyUI empties this folder
      }
    }
    if (this.source === source) this.record(null, fill(texts[failure.reason] ?? texts.unreadable, failure))
  }

  record(clip, message) {
    this.recording?.tiles.stop()
    this.recording = clip && this.placed(clip, 0)
    this.message = message
    this.onRecording(message)
  }

  replaceResult(file) {
    if (this.shown === this.result) this.editor.player.stop()
    this.result?.tiles.stop()
    Object.assign(this, { result: null, resultFile: file })
    this.compare(this.after).catch(() => this.compare(false))
  }

  placed(clip, at) {
    return { clip, at, tiles: new Tiles(clip, () => this.editor.repaint()) }
  }
}
