// The words of the batch list in English, Chinese and Japanese.

import { localized } from "../frontend.js"

const WORDS = {
  en: {
    empty: "Queue once: the items appear here.",
    kept: (some, all) => `${some} of ${all} kept`,
    all: "All",
    none: "None",
    keep: "Keep this item",
    play: "Play or pause",
    item: "A: the item",
    original: "B: the original",
    seek: "Click or drag to go there",
    seed: "Seed that generates only this item",
    gone: "No longer on the server. Queue again.",
    linked: "Another node decides what to keep.",
    unclear: "keep cannot be read for this batch",
    verdicts: { broken: "broken", silent: "silent", clipped: "clipped", sparse: "sparse", ok: "ok" },
  },
  zh: {
    empty: "执行一次后，各条目会显示在这里。",
    kept: (some, all) => `保留 ${some} / ${all}`,
    all: "全部",
    none: "不选",
    keep: "保留此条目",
    play: "播放或暂停",
    item: "A：此条目",
    original: "B：原始音频",
    seek: "点击或拖动以跳转",
    seed: "单独生成此条目的种子",
    gone: "服务器上已没有此文件，请重新执行。",
    linked: "由另一个节点决定保留哪些。",
    unclear: "keep 的内容对这一批无法识别",
    verdicts: { broken: "损坏", silent: "静音", clipped: "削波", sparse: "稀疏", ok: "正常" },
  },
  ja: {
    empty: "一度実行すると、各アイテムがここに表示されます。",
    kept: (some, all) => `${all} 件中 ${some} 件を残す`,
    all: "すべて",
    none: "なし",
    keep: "このアイテムを残す",
    play: "再生・一時停止",
    item: "A：このアイテム",
    original: "B：元の音声",
    seek: "クリックまたはドラッグで移動",
    seed: "このアイテムだけを作るシード",
    gone: "サーバーにもうありません。もう一度実行してください。",
    linked: "残すアイテムは別のノードが決めます。",
    unclear: "keep の内容がこのバッチでは読めません",
    verdicts: { broken: "破損", silent: "無音", clipped: "クリップ", sparse: "まばら", ok: "正常" },
  },
}

/** The words in the front end's language. */
export function words() {
  return localized(WORDS)
}
