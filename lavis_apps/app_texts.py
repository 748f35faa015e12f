"""The words of the page: English, Chinese."""

from __future__ import annotations

from shared.gradio_parts import Language

TITLE = "Pictures and words: seven tasks"
WORDS: dict[str, tuple[str, str]] = {
    "title": ("Pictures and words: seven tasks", "图片与文字：七项任务"),
    "intro": (
        "Describe a picture, ask about it, match it with texts, find things in it, sort it, "
        "search your folders. Nothing is sent anywhere.",
        "描述图片、就图片提问、图文匹配、在图中定位文字所指、分类、检索自己的文件夹。"
        "数据不会发送到任何地方。",
    ),
    "synthetic": (
        "Toy models trained on drawn shapes: what they say about anything else means nothing.",
        "这些是用绘制的图形训练的玩具模型：它们对其他内容的说法没有意义。",
    ),
    "synthetic_mark": ("SYNTHETIC", "合成数据（SYNTHETIC）"),
    "loaded": ("In memory: {models}.", "内存中的模型：{models}。"),
    "loaded_none": ("no model yet, each is loaded when it is first asked", "暂无，首次使用时加载"),
    "loading": ("loading {model}", "正在加载 {model}"),
    "by_model": ("Model: {model}", "模型：{model}"),
    "tab_caption": ("Image Description", "图像描述"),
    "tab_search": ("Multimodal Search", "多模态检索"),
    "tab_vqa": ("Visual Question Answering", "视觉问答"),
    "tab_matching": ("Image Text Matching", "图文匹配"),
    "tab_localization": ("Text Localization", "文字定位"),
    "tab_classification": ("Classification", "分类"),
    "tab_features": ("Features", "特征"),
    "tab_demo": ("BLIP Demo", "BLIP 演示"),
    "picture": ("Picture", "图片"),
    "pictures": ("Pictures, at most {most}", "图片，最多 {most} 张"),
    "picture_hint": ("Drop a picture here, or click to choose one", "把图片拖到这里，或点击选择"),
    "examples": ("Examples", "示例"),
    "model": ("Model", "模型"),
    "settings": ("Settings", "设置"),
    "waiting": ("The answer appears here.", "结果将显示在这里。"),
    "save_csv": ("⬇ CSV", "⬇ CSV"),
    "save_npz": ("⬇ npz", "⬇ npz"),
    "save_png": ("⬇ PNG", "⬇ PNG"),
    "save_all": ("⬇ PNG of all", "⬇ 全部 PNG"),
    "yes": ("yes", "是"),
    "no": ("no", "否"),
    "empty": ("(empty answer)", "（空回答）"),
    "score": ("Score", "分数"),
    "score_kind": ("Measure", "指标"),
    "go_caption": ("Describe", "描述"),
    "method": ("Sampling", "解码方式"),
    "method_beam": ("Beam search", "束搜索"),
    "method_nucleus": ("Nucleus sampling", "核采样"),
    "n": ("Captions", "描述条数"),
    "prompt": ("Prompt", "提示"),
    "prompt_what": (
        "What the caption goes on from. Empty: the model's own.",
        "描述由此续写。留空则用模型自己的提示。模型读写英文。",
    ),
    "num_beams": ("Beams", "束数"),
    "max_length": ("Longest (tokens)", "最长（词元）"),
    "min_length": ("Shortest (tokens)", "最短（词元）"),
    "top_p": ("Top p", "Top p"),
    "top_p_what": ("Of nucleus sampling", "用于核采样"),
    "temperature": ("Temperature", "温度"),
    "temperature_what": ("Of nucleus sampling", "用于核采样"),
    "length_penalty": ("Length penalty", "长度惩罚"),
    "length_penalty_what": (
        "Of beam search: above 0 prefers long captions",
        "用于束搜索：大于 0 偏向较长的描述",
    ),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "seed": ("Seed", "随机种子"),
    "seed_what": ("Same seed, same captions", "种子相同则描述相同"),
    "caption": ("Caption", "描述"),
    "score_what": (
        "Score: the mean log-probability of the caption's tokens; nearer to 0 is likelier.",
        "分数：描述中各词元对数概率的平均值，越接近 0 越可能。",
    ),
    "few_beams": (
        "{n} captions need {n} beams or more, but there are {num_beams}: raise Beams in the "
        "settings, or take nucleus sampling.",
        "{n} 条描述至少需要 {n} 个束，而现在是 {num_beams} 个：请在设置中调高束数，或改用核采样。",
    ),
    "bad_lengths": (
        "The shortest length ({min_length}) is above the longest ({max_length}).",
        "最短长度（{min_length}）大于最长长度（{max_length}）。",
    ),
    "go_vqa": ("Answer", "回答"),
    "question": ("Question", "问题"),
    "candidates": ("Possible answers", "候选答案"),
    "candidates_what": (
        "One a line: they are ranked. Empty: the model writes its own.",
        "每行一个，将被排序。留空则由模型自己写。",
    ),
    "n_answers": ("Answers shown", "显示的答案数"),
    "n_answers_what": (
        "Written answers are 3 at most, one a beam",
        "模型自己写的答案最多 3 个，每个束一个",
    ),
    "attention": ("Where the question looked", "问题看图的位置"),
    "attention_what": ("A map of BLIP's attention", "BLIP 的注意力图"),
    "dialogue": ("Remember earlier turns", "记住之前的问答"),
    "dialogue_what": (
        "For BLIP-2 and LLaVA; a BLIP answers single questions",
        "用于 BLIP-2 和 LLaVA；BLIP 只回答单个问题",
    ),
    "forget": ("Forget them", "忘记"),
    "answer": ("Answer", "答案"),
    "probability": ("Probability", "概率"),
    "log_likelihood": ("Log-likelihood", "对数似然"),
    "confidence_what": (
        "Probability: that of the answer's tokens and its end, as the model gives it; no promise "
        "that the answer is right.",
        "概率：模型给答案各词元及其结尾的概率，不保证答案正确。",
    ),
    "ranked_what": (
        "Probability: the answer's share among those that you gave.",
        "概率：该答案在您给出的候选中所占的份额。",
    ),
    "go_matching": ("Match", "匹配"),
    "match_texts": ("Texts", "文本"),
    "match_texts_what": (
        "One a line; each is compared with each picture",
        "每行一条，与每张图片比较。模型读英文。",
    ),
    "match_cam": ("Show where the text is seen", "显示文字所指的位置"),
    "layer": ("Layer", "层"),
    "layer_what": (
        "Block of the text encoder whose attention is drawn",
        "画出文本编码器哪一层的注意力",
    ),
    "itm": ("ITM probability", "ITM 概率"),
    "itc": ("ITC cosine", "ITC 余弦"),
    "itm_what": (
        "ITM (image-text matching): the model reads text and picture together and says how "
        "probable it is that they belong together.",
        "ITM（图文匹配）：模型同时读文本和图片，给出二者相配的概率。",
    ),
    "itc_what": (
        "ITC (image-text contrast): the cosine of two features made apart, from -1 to 1; quick, "
        "and only of use beside others.",
        "ITC（图文对比）：分别得到的两个特征的余弦，从 -1 到 1；计算快，只宜相互比较。",
    ),
    "many_maps": ("Maps are drawn for at most {most} pairs.", "最多为 {most} 对画图。"),
    "go_local": ("Find", "定位"),
    "local_text": ("Text", "文本"),
    "each_word": ("Each word", "各个词"),
    "cam_what": (
        "Red is where the text is seen (Grad-CAM). Each map goes from its own lowest to its own "
        "highest value.",
        "红色处是文字所指的位置（Grad-CAM）。每张图按各自的最低值到最高值着色。",
    ),
    "go_classes": ("Classify", "分类"),
    "classes": ("Classes", "类别"),
    "classes_what": ("One a line, any number", "每行一个，数量不限。模型读英文。"),
    "scoring": ("Score", "评分方式"),
    "scoring_itc": ("Cosine (ITC)", "余弦（ITC）"),
    "scoring_itm": ("Multimodal (ITM)", "多模态（ITM）"),
    "scoring_clip": ("CLIP", "CLIP"),
    "templates": ("Templates", "模板"),
    "templates_what": (
        "One a line, {} stands for the class; several are averaged. Empty: the model's usual one.",
        "每行一个，{} 代表类别，多个取平均。留空则用模型通常的模板。",
    ),
    "none_threshold": ("None of these below", "低于此值则都不是"),
    "none_threshold_what": (
        "On the best class' own score. Empty: always one of the classes",
        "与最佳类别自身的分数比较。留空：总是选出一个类别",
    ),
    "class": ("Class", "类别"),
    "none_of_these": ("none of these", "都不是"),
    "classes_note": (
        "Probability: the class' share among those named (softmax); they add up to 1 even where "
        "none fits.",
        "概率：该类别在所列类别中的份额（softmax）；即使都不合适，总和也是 1。",
    ),
    "one_class": (
        "One class: its probability is 1 for any picture; look at the score.",
        "只有一个类别：对任何图片概率都是 1，请看分数。",
    ),
    "raw_what": (
        "Score: the class' own, a cosine or the ITM probability; the threshold is compared with "
        "it.",
        "分数：该类别自身的余弦或 ITM 概率，阈值与它比较。",
    ),
    "go_search": ("Search", "检索"),
    "folder": ("Folder", "文件夹"),
    "query": ("Query", "查询"),
    "query_picture": ("or a picture, or both", "或一张图片，或两者"),
    "n_hits": ("Pictures shown", "显示的图片数"),
    "rerank": ("Multimodal re-ranking", "多模态重排"),
    "rerank_what": ("ITM looks again at the first ones", "用 ITM 重新判断排在前面的图片"),
    "show_cam": ("Show GradCam", "显示 GradCam"),
    "n_reranked": ("Re-ranked", "重排数量"),
    "text_weight": ("Weight of the words", "文字的权重"),
    "text_weight_what": ("In a query of words and picture", "用于文字加图片的查询"),
    "found": ("{n} pictures, the best first.", "{n} 张图片，最佳的在前。"),
    "hits_what": (
        "ITC: cosine of query and picture. ITM: probability that words and picture match. "
        "Re-ranked pictures are ordered by both.",
        "ITC：查询与图片的余弦。ITM：文字与图片相配的概率。重排的图片按两者之和排序。",
    ),
    "no_words": ("Re-ranking and maps need words.", "重排和画图需要文字。"),
    "no_reranker": (
        "Re-ranking and maps need a BLIP; this folder's model is none.",
        "重排和画图需要 BLIP，而这个文件夹的模型不是。",
    ),
    "no_folders": (
        "No folder is searched. Start the page with --images FOLDER or --index INDEX.",
        "没有可检索的文件夹。请用 --images 文件夹 或 --index 索引 启动本页面。",
    ),
    "gone": ("{name} is not there any more, or can't be read.", "{name} 已不存在或无法读取。"),
    "go_features": ("Compute", "计算"),
    "feature_texts": ("Texts", "文本"),
    "feature_texts_what": (
        "One a line; as many as pictures also gives features of the pairs",
        "每行一条；与图片数量相同时还给出图文对的特征。模型读英文。",
    ),
    "tokens": ("Every token's features in the file too", "文件中也包含每个词元的特征"),
    "tokens_what": (
        "Large; without, one vector a picture, text or pair",
        "较大；否则每张图片、每条文本或每对各一个向量",
    ),
    "field": ("Field", "字段"),
    "shape": ("Shape", "形状"),
    "length_one": ("Length one", "长度为一"),
    "cosines": ("Cosines of pictures and texts", "图片与文本的余弦"),
    "features_what": (
        "float32. embeds: states as they are; proj: each token in the common space; features: "
        "one vector each.",
        "float32。embeds：原样的状态；proj：公共空间中的各个词元；features：各一个向量。",
    ),
    "pairs": (
        "multimodal: picture i together with text i.",
        "multimodal：第 i 张图片与第 i 条文本一起。",
    ),
    "large_file": (
        "The file has {n} MiB, at most {most} are sent: give fewer pictures, or use predict.py "
        "--task features.",
        "文件有 {n} MiB，最多发送 {most} MiB：请减少图片，或使用 predict.py --task features。",
    ),
    "go_demo": ("Submit", "提交"),
    "demo_what": (
        "The BLIP demo's three functions with its names and its form of answers; programs call "
        "them at the endpoint /inference.",
        "BLIP 演示的三项功能，名称和回答形式照旧；程序可调用端点 /inference。",
    ),
    "function": ("Model", "模型"),
    "demo_text": ("Question, or text to match", "问题，或要匹配的文本"),
    "strategy": ("Caption Decoding Strategy", "描述的解码方式"),
    "output": ("Output", "输出"),
    "failed": ("{cause}", "无法完成：{cause}"),
    "cut": (
        "{n} of {of} texts are longer than the model reads: their ends are cut off.",
        "{of} 条文本中有 {n} 条超出模型能读的长度：末尾被截掉。",
    ),
    "no_picture": ("Give a picture first.", "请先给一张图片。"),
    "no_question": ("Write a question first.", "请先写一个问题。"),
    "no_text": ("Write a text first.", "请先写一条文本。"),
    "no_classes": ("Write the classes first, one a line.", "请先写类别，每行一个。"),
    "no_query": (
        "Write what to search for, or give a picture.",
        "请写要检索的内容，或给一张图片。",
    ),
    "no_features": ("Give pictures or texts first.", "请先给出图片或文本。"),
    "no_blip": (
        "{model} is no BLIP; this needs one for matching.",
        "{model} 不是 BLIP；这里需要用于匹配的 BLIP。",
    ),
    "doubled": ("The class {name} stands there twice.", "类别 {name} 出现了两次。"),
    "bad_template": (
        "The template {template} has no {{}} where the class goes.",
        "模板 {template} 中没有代表类别的 {{}}。",
    ),
    "too_many": ("{n} pictures are too many; at most {most}.", "{n} 张图片太多；最多 {most} 张。"),
    "many_pairs": (
        "{n} pairs of picture and text are too many; at most {most}.",
        "{n} 对图片和文本太多；最多 {most} 对。",
    ),
    "many_lines": ("{n} lines are too many; at most {most}.", "{n} 行太多；最多 {most} 行。"),
    "long_text": (
        "The text has {n:,} characters; at most {most:,}.",
        "文本有 {n:,} 个字符；最多 {most:,} 个。",
    ),
    "bad_text": ("The text can't be used: {cause}", "无法使用这段文本：{cause}"),
    "bad_number": (
        "{name}: {value} is not from {low} to {high}.",
        "{name}：{value} 不在 {low} 至 {high} 之间。",
    ),
    "bad_choice": ("There is no {value} to choose.", "没有 {value} 可选。"),
    "bad_picture": (
        "{name} can't be used: {cause}. Give a JPEG, PNG, WebP or BMP file.",
        "无法使用 {name}：它不是图片，或已损坏（{cause}）。请用 JPEG、PNG、WebP 或 BMP 文件。",
    ),
}
TEXTS: dict[Language, dict[str, str]] = {
    "en": {key: english for key, (english, _) in WORDS.items()},
    "zh": {key: chinese for key, (_, chinese) in WORDS.items()},
}
