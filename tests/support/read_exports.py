"""Run by another Python with another transformers: reads exports and says what it makes of them, as JSON."""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

transformers.logging.set_verbosity_error()
asked = json.load(sys.stdin)
answers = {"version": transformers.__version__, "logits": {}, "chats": {}, "ids": {}, "stops": {}}
for folder in asked["models"]:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval().float()
    with torch.no_grad():
        answers["logits"][folder] = model(input_ids=torch.tensor([asked["input_ids"]])).logits[0].tolist()
    answers["stops"][folder] = GenerationConfig.from_pretrained(folder).eos_token_id
for folder in asked["tokenizers"]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers["chats"][folder] = tokenizer.apply_chat_template(
        asked["messages"], tokenize=False, add_generation_prompt=True
    )
    answers["ids"][folder] = tokenizer(answers["chats"][folder], add_special_tokens=False).input_ids
json.dump(answers, sys.stdout)
